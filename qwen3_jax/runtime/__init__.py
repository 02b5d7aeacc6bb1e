"""What the process runs on: devices, compiled programs that are kept, memory, packages that may be missing."""
