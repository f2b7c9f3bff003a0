"""The training process: from the lock to the last step."""
