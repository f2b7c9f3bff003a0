"""From files and generators to prompts, and from completions to rewards. No torch in here."""
