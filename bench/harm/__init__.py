"""What a backup does to an application's latency, beside qemu-storage-daemon's backup job, also with a slow target."""
