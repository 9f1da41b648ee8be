"""Evaluation: what models can do and what they cost, asked through the LM interface."""
