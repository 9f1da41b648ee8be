"""The family tree as data: every system, its parents, its idea, its source, its code, its proof."""
