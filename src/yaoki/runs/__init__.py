"""A run as files: its directory, its lock, its lineage, the environment it was made in. No torch."""
