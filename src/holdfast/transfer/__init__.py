"""One save or one restore from end to end."""
