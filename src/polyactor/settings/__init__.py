"""From names, flags and files to a config that has been checked, and back."""
