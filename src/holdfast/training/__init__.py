"""The run: position, triggers, commits."""
