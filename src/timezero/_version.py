"""The version, in one place, for the build and for the program: reading installed metadata at start-up is slow."""

__version__ = "0.1.0"
