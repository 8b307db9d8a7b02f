"""A run from the inside: its loop, its books, its checkpoints, and when it is over."""
