"""Trained policies and the scores they reach.

* `policy`: loading a trained policy, and acting with it.
* `evaluate`: whole games played with a fixed policy, and their scores.
"""
