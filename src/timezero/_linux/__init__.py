"""Rare, stateless system calls and probes, as thin typed functions over one cffi module."""
