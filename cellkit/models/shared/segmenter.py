"""What `load` of a backend returns: images in, cells out, one image after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from cellkit.cells.instances import Instances


class Segmenter:
    """A loaded model: a stream of (H, W, 3) uint8 images -> their `Instances`, in order, each image taken when needed.

    Parameters
    ----------
    find : callable
        (image, Counter) -> Instances; the counter takes the number of cells that are left out, cut or doubtful, by reason.
    settings : mapping
        What the model is read with, by name.
    bytes_for : callable, optional
        (height, width) -> bytes of memory that finding the cells of one image takes.

    Attributes
    ----------
    left_out : Counter
        Cells by reason since somebody last took the counts, see `cellkit.cells.leftout.LeftOut`.
    """

    def __init__(
        self,
        find: Callable[[np.ndarray, Counter[str]], Instances],
        settings: Mapping[str, Any],
        bytes_for: Callable[[tuple[int, int]], int] = lambda shape: 0,
    ):
        self.find, self.settings, self.bytes_for, self.left_out = find, dict(settings), bytes_for, Counter()

    def __call__(self, images: Iterable[np.ndarray]) -> Iterator[Instances]:
        """Yield the cells of each image."""
        for image in images:
            yield self.find(image, self.left_out)


def merged(settings: Any, card: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return, for each of the defaults: what the caller set, else what the card of the checkpoint says, else the default.

    Parameters
    ----------
    settings : Settings or None
        None, as a whole or in a field = not set.

    Examples
    --------
    >>> merged(None, {"b": 2}, {"a": 1, "b": 1})
    {'a': 1, 'b': 2}
    """
    given = {name: getattr(settings, name, None) for name in defaults}
    return {
        name: next((value for value in (given.get(name), card.get(name)) if value is not None), default)
        for name, default in defaults.items()
    }
