"""What timezero does with data: copy, backup, restore, verify, a module each."""
