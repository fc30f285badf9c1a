"""timezero copy beside its peers."""
