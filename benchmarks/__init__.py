"""Benchmarks: this project beside TRL on the same work, how the cost grows, what it holds in memory. ``python -m benchmarks``."""
