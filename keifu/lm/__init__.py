"""LM: the interface every program is written against, and its implementations."""
