"""The algorithms: a table of them, and pure functions of tensors. No logging, no ranks, no disk."""
