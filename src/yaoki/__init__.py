"""Yaoki: Reasoner-Zero RL training that resumes completely and exactly."""

__version__ = "0.1.0"
