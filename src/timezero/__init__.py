"""Point-in-time backups of live volumes at device speed."""
