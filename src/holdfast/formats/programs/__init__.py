"""Programs of ``torch.export``: what in them is known to be harmless, found without torch and without running them."""
