"""The concordance: which files a dataset is, where its file system is mounted, and where its extents lie on the volume."""
