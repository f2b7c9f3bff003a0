"""Checkpoints: named parts (tensors, JSON) in, committed and verified directories out.

Import from the modules themselves; importing this package imports nothing, so that listing and
verifying work without torch. Nothing in here knows what a policy or a trainer is.
"""
