"""The one bridge between tensors and bytes."""
