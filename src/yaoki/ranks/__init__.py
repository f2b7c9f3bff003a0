"""What the ranks of a run tell one another."""
