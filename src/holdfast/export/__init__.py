"""Leaving PyTorch: a model as another runtime or smaller numbers take it, compared with what it was made of."""
