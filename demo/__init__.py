"""The demonstration: a group of busy volumes, backed up at one instant, restored, and proved from outside."""
