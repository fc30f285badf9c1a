"""What a command costs before and beside its work: `python -m bench.start`."""
