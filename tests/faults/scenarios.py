"""All scenarios."""

from .checkpoint_scenarios import CHECKPOINTS
from .fork_scenarios import BESIDES
from .journal_scenarios import JOURNALS
from .run_scenarios import RUNS
from .scenario import Scenario

SCENARIOS: list[Scenario] = [*CHECKPOINTS, *JOURNALS, *RUNS, *BESIDES]
