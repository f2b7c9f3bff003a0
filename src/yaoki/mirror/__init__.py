"""A run's copy at a URL: brought up to date in the background, fetched where the run's directory is lost."""
