"""Launchers: they start and supervise the workers of a run."""
