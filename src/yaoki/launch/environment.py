"""Names of the environment variables by which a launcher tells a worker who looks after it."""

LAUNCHER_PID = "YAOKI_LAUNCHER_PID"
"""The process that has started this worker and shows the first error; the worker ends when it is gone."""

DEATH_SIGNAL = "YAOKI_DEATH_SIGNAL"
"""Number of the signal that a worker gets when its launcher is gone."""
