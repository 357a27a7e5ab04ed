"""Bytes at rest: reading them, writing them so that a crash leaves the old or the new, and checking them."""
