"""Policy, critic, the built-in tiny base model, and the way to and from Hugging Face folders."""
