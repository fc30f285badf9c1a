"""The C core, in Cython: every handle with state, and everything that runs once an I/O."""
