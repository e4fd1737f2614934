"""How models are called in tables and figures, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

MODEL_NAMES = {  # in the order of every table; one without a name of its own is called as its backend is
    "threshold": "",
    "cellpose_base": "Cellpose, base",
    "cellpose_tuned": "Cellpose, tuned",
    "maskrcnn": "Mask R-CNN",
}


def model_name(name: str) -> str:
    """Return how a predictions file is called in print: a name of the table, or the title of the backend called so.

    Names that are not known stay as they are.

    Examples
    --------
    >>> model_name("cellpose_tuned"), model_name("my_unet")
    ('Cellpose, tuned', 'my_unet')
    """
    from cellkit.models import backend_names, title_of

    return MODEL_NAMES.get(name) or (title_of(name) if name in backend_names() else name)


def order_models(names: Iterable[str]) -> list[str]:
    """Return the names in the order of every table: the floor, Cellpose before and after, Mask R-CNN, then the others.

    Examples
    --------
    >>> order_models(["unet", "maskrcnn", "threshold"])
    ['threshold', 'maskrcnn', 'unet']
    """
    names, known = set(names), list(MODEL_NAMES)
    return [name for name in known if name in names] + sorted(names - set(known))
