"""The version, in one place: the build reads it here, and so does the program (reading metadata at start-up is slow)."""

__version__ = "0.1.0"
