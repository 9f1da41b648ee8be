"""Families: one file a family; load_model."""
