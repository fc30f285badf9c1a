"""The NBD data plane beside its peers."""
