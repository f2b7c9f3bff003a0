"""From files and task generators to prompts. Needs no torch."""
