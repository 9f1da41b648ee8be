"""Reports: one file each, found by name."""

from __future__ import annotations

from keifu.core.registry import Registry
from keifu.training.report import Report

reports: Registry[type[Report]] = Registry("report", "keifu.training.reports", "report", Report)
"""Every report by name; the name is the file's."""
