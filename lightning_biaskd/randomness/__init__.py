"""Randomness that any process and any resumed run draws alike."""
