"""Saving and loading checkpoints with torch."""
