"""Names of the environment variables that launchers set for their workers, beside torchrun's RANK, WORLD_SIZE
and LOCAL_RANK. A file of its own, because launchers import it and must not import torch.
"""

STORE_FILE = "YAOKI_STORE_FILE"
"""A new file for the rendezvous of ranks on one machine, with no port open. Without it the rendezvous is
torchrun's (MASTER_ADDR, MASTER_PORT)."""


LAUNCHER_PID = "YAOKI_LAUNCHER_PID"
"""Process id of the launcher, which shows the first error; the worker ends with it."""

DEATH_SIGNAL = "YAOKI_DEATH_SIGNAL"
"""Number of the signal that a worker gets when its launcher ends."""
