"""Checkpoints: safetensors and GGUF files, naming rules, where models come from."""
