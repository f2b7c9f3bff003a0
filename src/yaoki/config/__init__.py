"""What a run is asked to do. No torch in here: `yaoki --help` and `yaoki status` answer at once."""
