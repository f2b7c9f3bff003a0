"""Training: networks with their optimizers, sharding, scoring and updating."""
