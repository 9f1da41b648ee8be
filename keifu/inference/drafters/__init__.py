"""Drafters: one file each, found by name."""

from __future__ import annotations

from keifu.core.registry import Registry
from keifu.inference.speculation import Drafter

drafters: Registry[type[Drafter]] = Registry(
    "drafter", "keifu.inference.drafters", "drafter", Drafter
)
"""Every drafter by name; the name is the file's."""
