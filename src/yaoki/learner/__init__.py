"""The side that trains: networks with their optimizers, scoring and updating."""
