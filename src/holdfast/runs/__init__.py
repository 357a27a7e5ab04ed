"""A run directory, without tensors."""
