"""A run's copy at a URL: updated in the background, fetched where the run's directory is missing."""
