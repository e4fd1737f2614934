"""Messages while it works: lines of the logger "cellkit", silent until a handler is attached.

The command line and notebooks attach one (`show_log`); others attach their own, as to any logger.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOG = logging.getLogger("cellkit")
LOG.addHandler(logging.NullHandler())


class PlainLines(logging.Handler):
    """Writes what is logged as it is, a line each, to the stream that has this name now."""

    def __init__(self, stream: str):
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, at once."""
        print(record.getMessage(), file=getattr(sys, self.stream), flush=True)


def show_log(stream: str = "stdout") -> None:
    """Show progress and notes as plain lines on a standard stream; called again, it changes nothing."""
    if not any(isinstance(handler, PlainLines) for handler in LOG.handlers):
        LOG.addHandler(PlainLines(stream))
    LOG.setLevel(logging.INFO)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect warnings instead of showing them; progress is shown as before."""
    lines: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        lines.extend(record.getMessage().splitlines())
        return False

    LOG.addFilter(keep)
    try:
        yield lines
    finally:
        LOG.removeFilter(keep)
