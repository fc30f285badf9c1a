"""Benchmarks: kernels (pytest-benchmark) and whole commands side by side with the peers."""
