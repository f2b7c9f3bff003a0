"""From a completion to its reward: answer extraction, comparison, and verifiers in processes of their own."""
