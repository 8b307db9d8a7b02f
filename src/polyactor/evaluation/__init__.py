"""A trained policy, and what it scores in whole games."""
