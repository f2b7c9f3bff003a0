"""The engines: transformers, vLLM, and a scripted one for tests."""
