"""Communication between the ranks of a run: process groups, agreement, environment variables."""
