"""From an answer to its reward: extraction, comparison, verifiers in processes of their own."""
