"""The overrides of a configuration: dotted keys and their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from cellkit.config.sections import STAGES
from cellkit.errors import UserError

READ_OTHERS = ("convert", "evaluate")  # sections of notebooks that read those of others too

_LAST: list[str] = []  # keys of the overrides that this process read last
_LOADED: list[tuple[Any, str, dict[str, Any]]] = []  # the configuration that it read last, its file and overrides


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


def said_twice(key: str, value: Any, known: Mapping[str, Any]) -> str:
    """Say how a key, or one of its table, is set again; "" where none is.

    Examples
    --------
    >>> said_twice("a.b", 1, {"a.b": 2}), said_twice("a", {"b": 1}, {"a.b": 2}), said_twice("a", {"c": 1}, {"a.b": 2})
    ('a.b is given twice', 'a.b is given twice', '')
    """
    mine, others = _leaves(key, value), [one for name, told in known.items() for one in _leaves(name, told)]
    for leaf in mine:
        if any(f"{one}.".startswith(f"{leaf}.") or f"{leaf}.".startswith(f"{one}.") for one in others):
            return f"{leaf} is given twice"
    return ""


def _leaves(key: str, value: Any) -> list[str]:
    """Return the dotted keys of a value that may be a table."""
    if not isinstance(value, Mapping) or not value:
        return [key]
    return [leaf for name, one in value.items() for leaf in _leaves(f"{key}.{name}", one)]


def unread_by(stage: str) -> list[str]:
    """Return the keys of the last overrides that do nothing in the notebook of a stage: they are other notebooks'."""
    own = STAGES.get(stage)
    if own is None or own in READ_OTHERS:
        return []
    return [key for key in _LAST if key.split(".")[0] in set(STAGES.values()) - {own}]


def note_loaded(cfg: Any, path: str, overrides: Mapping[str, Any]) -> None:
    """Let `last_loaded` tell of this configuration from here on."""
    _LOADED[:] = [(cfg, path, dict(overrides))]


def last_loaded() -> tuple[Any, str, dict[str, Any]]:
    """Return the configuration that this process read last, the path of its file, and the overrides; None, "", {} without one."""
    return _LOADED[0] if _LOADED else (None, "", {})
