"""What the runner says: how a notebook ended, and how long the others take."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
from typing import Any

from cellkit.errors import UserError, place_fault

INTERRUPTED = 130


def verdict(outcome: Any, reached: bool) -> tuple[int, str]:
    """Return exit code and problem of a notebook that did not end well."""
    after = " after stage.done" if reached else ""
    if outcome.ending == "interrupted":
        return INTERRUPTED, f"interrupted in cell {outcome.cell}"
    if outcome.ending == "error" and outcome.error_name == "UserError":
        return 2, outcome.error_text
    if outcome.ending == "error" and (fault := _place_fault(outcome.error_text)):
        return 2, str(fault)
    if outcome.ending == "error":
        name = f"{outcome.error_name}: " if outcome.error_name else ""
        return 1, f"failed{after}: {name}{outcome.error_text}"
    if outcome.ending == "timeout":
        return 1, f"stopped{after}: the cell took longer than the time allowed"
    if outcome.ending == "died":
        return 1, f"the kernel died{after}{_exit_words(outcome.kernel_exit)}"
    if outcome.ending == "exit":
        return 1, "a cell called exit() before stage.done"
    return 1, "ended without stage.done"


def _place_fault(text: str) -> UserError | None:
    """Return what to say when a cell failed because of the disk or folder it wrote to; None for another error.

    Examples
    --------
    >>> print(_place_fault("[Errno 28] No space left on device: '/runs/a/x.csv'"))
    '/runs/a/x.csv': the disk is full
    free space there, or name another place, then repeat the command: what is done is kept
    """
    found = re.match(r"\[Errno (\d+)\] [^:]*(?:: '(.*)')?$", text, re.S)
    return place_fault(OSError(int(found[1]), "", found[2])) if found else None


def _exit_words(status: int | None) -> str:
    """Say what an exit status means.

    Examples
    --------
    >>> _exit_words(-9)
    ' (exit code 137, SIGKILL: often the machine ran out of memory)'
    >>> _exit_words(1)
    ' (exit code 1)'
    """
    if status is None:
        return ""
    if status >= 0:
        return f" (exit code {status})"
    hint = ": often the machine ran out of memory" if status == -9 else ""
    with contextlib.suppress(ValueError):
        return f" (exit code {128 - status}, {signal.Signals(-status).name}{hint})"
    return f" (exit code {128 - status})"


class Console:
    """Lines of the runner and what notebooks print, on stderr, never two on one line."""

    def __init__(self):
        self.fresh_line = True

    def line(self, text: str) -> None:
        """Print a line."""
        print(("" if self.fresh_line else "\n") + text, file=sys.stderr, flush=True)
        self.fresh_line = True

    def raw(self, text: str) -> None:
        """Print what a notebook printed, as it is."""
        if text:
            print(text, end="", file=sys.stderr, flush=True)
            self.fresh_line = text.endswith("\n")


class Clock:
    """Time since a notebook began, and about how long until all are done."""

    def __init__(self, this_s: float | None, later_s: float | None):
        self.began, self.this_s, self.later_s = time.monotonic(), this_s, later_s

    def elapsed(self) -> str:
        """Return the time since it began, in words."""
        return span(time.monotonic() - self.began)

    def left(self) -> str:
        """Return the time left in words, empty when it cannot be told."""
        if self.this_s is None or self.later_s is None:
            return ""
        left = max(0.0, self.this_s - (time.monotonic() - self.began)) + self.later_s
        return span(left) if left >= 1 else ""


def span(seconds: float) -> str:
    """Return a time span in short words.

    Examples
    --------
    >>> span(7.6), span(72), span(300), span(3720)
    ('8s', '1m12s', '5m', '1h02m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s" if whole % 60 else f"{whole // 60}m"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
