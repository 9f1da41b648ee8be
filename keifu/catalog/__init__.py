"""The family tree as data: every system, its parents, its idea, its source, its code, its proof."""

from keifu.catalog.tree import Model, System, areas, check, children, system, systems

__all__ = ["Model", "System", "areas", "check", "children", "system", "systems"]
