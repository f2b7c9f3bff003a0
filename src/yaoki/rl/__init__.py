"""The algorithm: pure functions of tensors and plain floats. No config, no logging, no ranks, no disk."""
