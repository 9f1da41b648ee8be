"""The keifu command: one table of verbs, each a thin call into the library."""
