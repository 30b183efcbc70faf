"""What every part stands on: errors, registries, files on disk, threads, devices."""
