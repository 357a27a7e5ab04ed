"""What is alive and stateful and not in the run."""
