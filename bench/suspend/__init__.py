"""How long a suspension takes, part by part."""
