"""Silences what Transformers, PEFT and bitsandbytes say about things that are as they should be.

Bars and notes about a score head that is new, warnings about names that PEFT still uses, and one line per 8-bit layer
and step about the dtype of its input help no user of a command.
"""

import logging as standard_logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors are logged inside, and nothing draws a bar; what was set before is set again afterwards."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bitsandbytes = standard_logging.getLogger("bitsandbytes")
    level = bitsandbytes.level
    bitsandbytes.setLevel(standard_logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
            yield
    finally:
        bitsandbytes.setLevel(level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
