"""Listing, verifying and pruning checkpoints must work where torch is not installed."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("heavy", ["torch", "numpy", "safetensors"])
def test_listing_and_verifying_do_not_import(heavy: str) -> None:
    modules = ("layout", "canonical", "manifest", "head", "retention", "pins", "verify", "catalog")
    imports = "; ".join(["import yaoki.fs", *(f"import yaoki.checkpoint.{module}" for module in modules)])
    code = f"import sys; sys.modules[{heavy!r}] = None; {imports}"
    subprocess.run([sys.executable, "-c", code], check=True)
