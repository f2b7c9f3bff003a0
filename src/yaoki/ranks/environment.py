"""Names of the environment variables by which a worker learns its place. No torch: launchers set them.

RANK, WORLD_SIZE and LOCAL_RANK are torchrun's; this is beside them.
"""

STORE_FILE = "YAOKI_STORE_FILE"
"""A new file at which ranks on one machine meet, with no port open. Without it they meet as torchrun says
(MASTER_ADDR, MASTER_PORT)."""


LAUNCHER_PID = "YAOKI_LAUNCHER_PID"
"""The process that has started this worker and shows the first error; the worker ends when it is gone."""

DEATH_SIGNAL = "YAOKI_DEATH_SIGNAL"
"""Number of the signal that a worker gets when its launcher is gone."""
