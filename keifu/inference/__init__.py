"""Inference: the engine, its scheduler, sampling."""
