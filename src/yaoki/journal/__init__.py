"""Append-only records of a run: rollouts and metrics. No torch."""
