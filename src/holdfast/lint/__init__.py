"""Mistakes in training scripts, found by reading them: nothing of a script is imported or run."""
