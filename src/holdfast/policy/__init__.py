"""What may differ between a file and a live object; pure, no I/O."""
