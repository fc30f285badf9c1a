"""What a full backup costs the application that writes meanwhile, beside qemu-storage-daemon's backup job."""
