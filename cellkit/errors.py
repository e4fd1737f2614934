"""What can be said to a person: errors that name the cause and the cure, and items set aside."""

from __future__ import annotations

from dataclasses import dataclass


class UserError(Exception):
    """Bad usage, configuration or input: one line what came and what was wanted, one line what to do.

    The command line prints it without a traceback and exits with 2.

    Examples
    --------
    >>> print(UserError("data is 'cells.xyz', no such folder", "set data: in the config"))
    data is 'cells.xyz', no such folder
    set data: in the config
    """

    def __init__(self, problem: str, remedy: str = ""):
        super().__init__(problem if not remedy else f"{problem}\n{remedy}")


@dataclass(frozen=True)
class Quarantined:
    """One item of many that could not be used: which, and why. The rest goes on; the run ends with exit code 3."""

    item: str
    reason: str


def nearest(word: str, choices) -> str:
    """Return `` (did you mean 'x'?)`` for the closest choice, or an empty string.

    Examples
    --------
    >>> nearest("epocs", ["epochs", "batch_size"])
    " (did you mean 'epochs'?)"
    >>> nearest("zzz", ["epochs"])
    ''
    """
    from difflib import get_close_matches

    match = get_close_matches(str(word), [str(choice) for choice in choices], n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""
