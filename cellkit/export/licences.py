"""The licence that goes along with a model, by the name that machines read (SPDX)."""

from __future__ import annotations

from collections.abc import Sequence

from cellkit.errors import UserError, nearest

LICENCES = (
    "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-3.0",
    "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0", "CC-BY-ND-4.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "ISC", "MPL-2.0",
    "GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later",
    "AGPL-3.0-only", "AGPL-3.0-or-later", "ODbL-1.0", "PDDL-1.0", "Unlicense",
)  # fmt: skip


def licence_of(given: str | None, card: str) -> str | None:
    """Return the licence that is given, else the one that a card's text begins with; None where that is none.

    Raises
    ------
    UserError
        What is given is none of `LICENCES`.

    Examples
    --------
    >>> licence_of(None, "CC0-1.0 (DSB2018 stage 1)"), licence_of(None, "of your images"), licence_of("MIT", "CC0-1.0")
    ('CC0-1.0', None, 'MIT')
    """
    if given is not None:
        if given not in LICENCES:
            raise UserError(
                f"'{given}' is no licence that is known here{nearest(given, LICENCES)}", f"use {', '.join(LICENCES)}"
            )
        return given
    first = card.split()[0].rstrip(",;:") if card.split() else ""
    return first if first in LICENCES else None


def joined_words(cards: Sequence[str]) -> str:
    """Return what the cards of a model's parts say of licences, as one text; it begins with a licence where all begin with that.

    Examples
    --------
    >>> joined_words(["CC0-1.0 (drawn)", "CC0-1.0"]), joined_words(["", "CC0-1.0"]), joined_words(["of your images"])
    ('CC0-1.0 (drawn); CC0-1.0', 'of its parts: none named; CC0-1.0', 'of your images')
    """
    told = list(dict.fromkeys(cards))
    if not any(told):
        return ""
    text = "; ".join(words or "none named" for words in told)
    named = {licence_of(None, words) for words in told}
    return text if len(told) == 1 or (len(named) == 1 and None not in named) else f"of its parts: {text}"


def hub_name(licence: str | None) -> str:
    """Return what the Hugging Face Hub calls a licence; it refuses a README that names one otherwise.

    Examples
    --------
    >>> hub_name("CC-BY-4.0"), hub_name("GPL-3.0-or-later"), hub_name("ODbL-1.0"), hub_name(None)
    ('cc-by-4.0', 'gpl-3.0', 'odbl', 'other')
    """
    if licence is None:
        return "other"
    name = licence.lower().removesuffix("-only").removesuffix("-or-later")
    return name.removesuffix("-1.0") if name.startswith(("odbl", "pddl")) else name


def said_of(licence: str | None, card: str) -> list[str]:
    """Return what is to be said where no licence goes along."""
    if licence is not None:
        return []
    kept = f"its card says '{card}'" if card else "its card names none"
    return [f"no licence goes along ({kept}): give one with --licence, e.g. CC-BY-4.0"]
