"""What a run records while it goes on. No torch in here."""
