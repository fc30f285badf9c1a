"""Datasets that are files, from the command to the commit."""
