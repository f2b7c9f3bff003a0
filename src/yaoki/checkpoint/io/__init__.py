"""State to and from checkpoints: snapshots, streamed writing, commits, verified restoring."""
