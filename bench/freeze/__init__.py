"""How long the file systems of file datasets are frozen, part by part."""
