"""What is known of a run, a file or a difference as one page for a browser: data in, text out."""
