"""The overrides of a configuration: dotted keys and their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from cellkit.config.sections import STAGES
from cellkit.errors import UserError

READ_OTHERS = ("convert", "evaluate")  # sections of notebooks that read those of others too

_LAST: list[str] = []  # keys of the overrides that this process read last


def table_of(overrides: Any) -> dict[str, Any]:
    """Return overrides by their keys as text; `unread_by` knows them from here on.

    Raises
    ------
    UserError
        They are no table, but text as for ``--set`` or a list.

    Examples
    --------
    >>> table_of({"finetune.steps": 1})
    {'finetune.steps': 1}
    """
    if isinstance(overrides, Mapping):
        _LAST[:] = [str(key) for key in overrides]
        return {str(key): value for key, value in overrides.items()}
    texts = (
        [overrides] if isinstance(overrides, str) else list(overrides) if isinstance(overrides, list | tuple) else []
    )
    example = {}
    for key, equals, value in (text.partition("=") for text in texts if isinstance(text, str)):
        try:
            example |= {key.strip(): yaml.safe_load(value)} if equals and key.strip() else {}
        except yaml.YAMLError:
            continue
    problem = f"overrides is {overrides!r}, no table of keys and values"
    raise UserError(problem, f"write it as overrides = {example or {'finetune.steps': 100}}")


def said_twice(key: str, known: Iterable[str]) -> str:
    """Say how a key is set again, by itself or by a table around or below it; "" where it is not.

    Examples
    --------
    >>> said_twice("a.b", ["a.b"]), said_twice("a", ["a.b"]), said_twice("a.b", ["a.bc"])
    ('a.b is given twice', 'a and a.b say the same', '')
    """
    for one in known:
        if f"{one}.".startswith(f"{key}.") or f"{key}.".startswith(f"{one}."):
            return f"{key} is given twice" if one == key else f"{key} and {one} say the same"
    return ""


def unread_by(stage: str) -> list[str]:
    """Return the keys of the last overrides that do nothing in the notebook of a stage: they are other notebooks'."""
    own = STAGES.get(stage)
    if own is None or own in READ_OTHERS:
        return []
    return [key for key in _LAST if key.split(".")[0] in set(STAGES.values()) - {own}]
