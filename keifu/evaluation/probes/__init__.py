"""Probes: one file each, found by name."""
