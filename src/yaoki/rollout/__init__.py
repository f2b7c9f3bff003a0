"""From prompts to rollouts: engines generate, verifiers judge."""
