"""Kernels: how a product with a packed or dense weight is computed on this machine."""
