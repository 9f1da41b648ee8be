"""Measurements that take minutes: speed beside the peers, start, memory, accuracy."""
