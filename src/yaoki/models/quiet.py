"""Keeps transformers' reports off the screen, and its bars where the work is instant. Nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet(*, with_bars: bool) -> Iterator[None]:
    """Errors only; with `with_bars` (a download), transformers may still show its progress."""
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not with_bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
