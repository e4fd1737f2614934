"""Kaggle's competitions: one file for each, with its columns and the order of its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pkgutil import extend_path

from cellkit.errors import UserError, nearest
from cellkit.modules import load_all

__path__ = extend_path(__path__, __name__)


@dataclass(frozen=True)
class Profile:
    """What one competition wants: a file of this folder, found by listing (`cellkit.modules`).

    Attributes
    ----------
    name : str
    columns : (str, str)
        Of the image id and of the pixels: ``COLUMNS`` of the file.
    order : str
        How pixels are counted, "row-major" or "column-major": ``PIXEL_ORDER``.
    truth_columns : tuple of str
        What its own table of truth may call the pixels of a cell, in lower case: ``TRUTH_COLUMNS``.
    """

    name: str
    columns: tuple[str, str]
    order: str
    truth_columns: tuple[str, ...] = ()


def profiles() -> dict[str, Profile]:
    """Return all competitions by name."""
    return {
        name: Profile(name, module.COLUMNS, module.PIXEL_ORDER, module.TRUTH_COLUMNS)
        for name, module in load_all("competition").items()
    }


def get_profile(name: str | Profile) -> Profile:
    """Return the profile of that name.

    Raises
    ------
    UserError
        There is none.
    """
    if isinstance(name, Profile):
        return name
    known = profiles()
    if name not in known:
        raise UserError(f"no profile '{name}'{nearest(name, known)}", f"choose from {', '.join(known)}")
    return known[name]
