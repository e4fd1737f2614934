"""The names by which an image and what was made of it know each other: ``HEK/cell 1.ome.tif``, ``HEK_cell_1_masks.png``.

A tool keeps the name of the picture, cellkit writes the id that such a name becomes (`cellkit.convert.image_id_of`), and
macOS writes an umlaut as two characters. All of them are the same name, and a stricter agreement goes before a looser one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cellkit.errors import UserError

HASHED = re.compile(r"-[0-9a-f]{6}$")
Keys = frozenset[str]


def stem_of(name: str) -> str:
    """Return a file name without folder and suffix; ``.ome.tif`` is one suffix.

    Examples
    --------
    >>> stem_of("labels/a.b.ome.tif"), stem_of(".a.png"), stem_of("a")
    ('a.b', '.a', 'a')
    """
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem = name.rsplit(".", 1)[0] if "." in name[1:] else name
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def plain_stem(path: str) -> str:
    """Return the name an image and its label image share: without folder, suffix and ``_masks`` and the like.

    Examples
    --------
    >>> plain_stem("labels/a_cp_masks.tif"), plain_stem("a.ome.tif"), plain_stem("a.b.png")
    ('a', 'a', 'a.b')
    """
    from cellkit.listing import LABEL_ENDINGS

    stem = stem_of(path)
    ending = next((ending for ending in LABEL_ENDINGS if stem.lower().endswith(ending) and len(stem) > len(ending)), "")
    return stem[: len(stem) - len(ending)]


def same(name: str) -> str:
    """Return a name in the one form in which equal names are equal: composed characters, forward slashes.

    Examples
    --------
    >>> same("a\\\\Zu\\u0308rich") == "a/Z\\u00fcrich"
    True
    """
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def ids_of(name: str) -> Keys:
    """Return the image ids that a path without suffix may have become; several where they carry a digest of the path.

    Examples
    --------
    >>> sorted(ids_of("HEK/cell 1"))
    ['HEK_cell_1']
    >>> "50-0b3ee8" in ids_of("50%"), len(ids_of("50%")) > 1
    (True, True)
    """
    from cellkit.convert import image_id_of
    from cellkit.listing import IMAGE_SUFFIXES

    name = same(name)
    first = image_id_of(f"{name}.png")
    if not HASHED.search(first) or first == name:
        return frozenset([first])
    suffixes = {*IMAGE_SUFFIXES, ".ome.tif", ".ome.tiff", ""}
    return frozenset(image_id_of(name + cased) for suffix in suffixes for cased in (suffix, suffix.upper()))


def pairs(mine: Sequence[Keys], other: Sequence[Keys]) -> dict[int, int]:
    """Return {position in `mine`: position in `other`} where they share a key; nothing when any pair is not one to one.

    Examples
    --------
    >>> pairs([frozenset("a"), frozenset("b")], [frozenset("bc"), frozenset("d")])
    {1: 0}
    >>> pairs([frozenset("a"), frozenset("a")], [frozenset("a")])
    {}
    """
    place: dict[str, int] = {}
    for k, keys in enumerate(other):
        for key in keys:
            if place.setdefault(key, k) != k:
                return {}
    found: dict[int, int] = {}
    for k, keys in enumerate(mine):
        hits = {place[key] for key in keys if key in place}
        if len(hits) > 1:
            return {}
        found |= {k: hits.pop()} if hits else {}
    return found if len(set(found.values())) == len(found) else {}


def best_pairs(mine: Sequence, other: Sequence, names: Iterable[Callable[..., Keys]]) -> dict[int, int]:
    """Return the `pairs` by whichever of `names` matches most; the earlier one where two match as many."""
    best: dict[int, int] = {}
    for name in names:
        found = pairs([name(item) for item in mine], [name(item) for item in other])
        best = found if len(found) > len(best) else best
        if len(best) == len(mine) == len(other):
            break
    return best


class Pictures:
    """The pictures below a folder, found by what a label file or an annotation calls them.

    Parameters
    ----------
    folder : path

    Raises
    ------
    UserError
        No such folder.
    """

    def __init__(self, folder: str | Path):
        from cellkit.listing import IMAGE_SUFFIXES, list_files

        if not Path(folder).is_dir():
            raise UserError(f"no folder at {folder}", "give the folder that holds the images")
        self.folder = Path(folder)
        self.files = list_files(self.folder, IMAGE_SUFFIXES)
        self._found: tuple[dict[str, list[Path]], ...] = ({}, {}, {})
        for file in self.files:
            whole = self._whole(file.relative_to(self.folder).as_posix())
            keys = ({same(whole)}, {same(stem_of(whole))}, ids_of(whole) | ids_of(stem_of(whole)))
            for table, names in zip(self._found, keys, strict=True):
                for name in names:
                    table.setdefault(name, []).append(file)

    @staticmethod
    def _whole(relative: str) -> str:
        return (Path(relative).parent / stem_of(relative)).as_posix()

    def find(self, name: str) -> tuple[Path, str]:
        """Return the one picture of a name (a path without suffix), and its path below the folder.

        Raises
        ------
        UserError
            There is none, or several.
        """
        by_path, by_stem, by_id = self._found
        stem = name.replace("\\", "/").rsplit("/", 1)[-1]
        asked = [(by_path, {same(name)}), (by_stem, {same(stem)}), (by_id, ids_of(name)), (by_id, ids_of(stem))]
        for table, names in asked:
            files = sorted({file for key in names for file in table.get(key, [])})
            if len(files) == 1:
                return files[0], files[0].relative_to(self.folder).as_posix()
            if files:
                shown = " and ".join(file.relative_to(self.folder).as_posix() for file in files[:2])
                raise UserError(
                    f"there are {len(files)} pictures called {stem}: {shown}",
                    "keep labels in the folders of their pictures, or give a folder with one of them",
                )
        near = f"; there are {self.some(3)}" if self.files else ""
        raise UserError(f"there is no picture called {stem}{near}", "name image and labels alike, one of each")

    def some(self, most: int) -> str:
        """Name the first pictures."""
        names = [file.relative_to(self.folder).as_posix() for file in self.files[:most]]
        return ", ".join([*names, *(["..."] if len(self.files) > most else [])])
