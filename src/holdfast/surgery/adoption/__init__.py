"""A run out of a folder of old checkpoints: facts of each file, a plan made of them, the steps written and proved."""
