"""The concordance: which files the datasets are, where they are mounted, and where they lie on their volumes."""
