"""Task families whose tasks are generated from a seed."""
