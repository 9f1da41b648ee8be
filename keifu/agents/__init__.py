"""Agents: programs that take several steps towards a goal, one file each, found by name."""

from __future__ import annotations

from keifu.agents._agent import Agent
from keifu.core.registry import Registry

agents: Registry[type[Agent]] = Registry("agent", "keifu.agents", "agent", Agent)
"""Every agent by name; the name is the file's."""
