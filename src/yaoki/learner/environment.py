"""Names of the environment variables by which a worker learns its place. No torch: launchers set them.

RANK, WORLD_SIZE and LOCAL_RANK are torchrun's; this is beside them.
"""

STORE_FILE = "YAOKI_STORE_FILE"
"""A new file at which ranks on one machine meet, with no port open. Without it they meet as torchrun says
(MASTER_ADDR, MASTER_PORT)."""
