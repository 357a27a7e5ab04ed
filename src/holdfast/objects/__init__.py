"""Live objects and the trees that hold their state; opens no file."""
