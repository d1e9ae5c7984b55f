"""Shared parts of the methods that read features."""
