"""Checkpoints of named parts (tensors and JSON): what needs no torch, such as listing and verifying.

Saving and loading are in `io`. Import from the modules; this package imports nothing by itself.
"""
