"""Listing, verifying and pruning checkpoints must work where torch is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

import yaoki.checkpoint


@pytest.mark.parametrize("heavy", ["torch", "numpy", "safetensors"])
def test_listing_and_verifying_do_not_import(heavy: str) -> None:
    modules = sorted(path.stem for path in Path(yaoki.checkpoint.__path__[0]).glob("[a-z]*.py"))
    assert {"catalog", "manifest", "verify"} <= set(modules)
    imports = "; ".join(f"import yaoki.checkpoint.{module}" for module in modules)
    code = f"import sys; sys.modules[{heavy!r}] = None; {imports}"
    subprocess.run([sys.executable, "-c", code], check=True)
