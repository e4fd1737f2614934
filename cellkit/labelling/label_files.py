"""Which image of a run a label file belongs to, by its name: image id, or the name of the file the image came from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cellkit.cells.records import ImageRecord
from cellkit.errors import Quarantined
from cellkit.formats.labels import LABELS_FILE

BY_PRODUCTS = ("_flows", "_cp_outlines", "_outlines")  # what Cellpose writes beside masks
OF_SYSTEM = ("thumbs.db", "desktop.ini")
PLAN_FILE = "plan.csv"  # what `cellkit plan` writes beside the files to correct
CONFIRMED = "confirmed.csv"  # column image_id: images whose label file there is right as it is, says a person
WANTED = "<image_id>.tif, _masks.tif, _cp_masks.png, _seg.npy, _rois.zip or .geojson, or so called after the image's own file"


def match_files(
    records: Sequence[ImageRecord], folder: Path
) -> tuple[dict[str, list[tuple[str, Path]]], list[Quarantined], list[str]]:
    """Match the files of a folder to images by their names: {image_id: (kind, path)}, what fits none, and what is no label."""
    names = ImageNames(records)
    unused, beside, of_image = [], [], {}
    for path in _files(folder):
        kind, stems = _kind(path, names)
        found = names.of(path.relative_to(folder), stems)
        name = path.relative_to(folder).as_posix()
        if kind == "other" or len(found) != 1:
            unused.append(Quarantined(name, why_unused(kind, found)))
        elif kind == "beside":
            beside.append(name)
        else:
            of_image.setdefault(found.pop(), []).append((kind, path))
    return of_image, unused, beside


def _files(folder: Path) -> list[Path]:
    """Return every file below a folder, sorted; hidden ones, the system's and the list of cellkit's own left out."""
    found = []
    for place, below, names in os.walk(folder, followlinks=False):
        below[:] = [name for name in below if not name.startswith(".") and name != "__MACOSX"]
        plain = [name for name in names if not name.startswith(".") and name.lower() not in OF_SYSTEM]
        found += [Path(place, name) for name in plain if name not in (LABELS_FILE, CONFIRMED, PLAN_FILE)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def why_unused(kind: str, found: set[str]) -> str:
    """Say why a file of a kind that fits these images is not used."""
    if kind == "other":
        return "no label image, _seg.npy file, ROI zip or GeoJSON"
    if not found:
        return f"named after no image; wanted {WANTED}"
    return f"fits {len(found)} images ({', '.join(sorted(found)[:3])}); name it after one image_id"


class ImageNames:
    """By which names the images of a run are known.

    Parameters
    ----------
    records : list of ImageRecord
    """

    def __init__(self, records: Sequence[ImageRecord]):
        self.ids = {record.image_id for record in records}
        self.paths: dict[str, set[str]] = {}
        self.stems: dict[str, set[str]] = {}
        for record in records:
            for path in (*_sources(record), record.path.rsplit("/", 1)[-1]):
                self.paths.setdefault(path, set()).add(record.image_id)
                self.stems.setdefault(path.rsplit("/", 1)[-1], set()).add(record.image_id)

    def of(self, relative: Path, stems: Sequence[str]) -> set[str]:
        """Return the images that a file may belong to: by id, by path, by file name, the first that fits any."""
        from cellkit.cells.names import image_id_of

        for stem in stems:
            below = (relative.parent / stem).as_posix()
            ways = ({stem}, {image_id_of(f"{below}.png")}, {image_id_of(f"{stem}.png")})
            for way in (*(w & self.ids for w in ways), self.paths.get(below, set()), self.stems.get(stem, set())):
                if way:
                    return set(way)
        return set()


def _sources(record: ImageRecord) -> Iterator[str]:
    """Yield the path of the file an image came from, with and without its suffix; ``.ome.tif`` is one, or two for others.

    Examples
    --------
    >>> list(_sources(ImageRecord("x", "images/x.png", 4, 4, file="HEK/a 1.ome.tif")))
    ['HEK/a 1.ome.tif', 'HEK/a 1.ome', 'HEK/a 1']
    """
    from cellkit.cells.names import stem_of

    if record.file:
        path = Path(record.file)
        yield from dict.fromkeys(p.as_posix() for p in (path, path.with_suffix(""), path.parent / stem_of(path)))


def _kind(path: Path, names: ImageNames) -> tuple[str, list[str]]:
    """Return what a file is by its name (seg, roi, geojson, marked, plain, beside, other), and what its image may be called."""
    from cellkit.cells.names import LABEL_ENDINGS, stem_of
    from cellkit.formats.geojson import ENDINGS as GEOJSON
    from cellkit.formats.geojson import picture_stem
    from cellkit.microscope.folders import IMAGE_SUFFIXES, LABEL_SUFFIXES

    name, stem = path.name, stem_of(path)
    lower = name.lower()
    if lower.endswith("_seg.npy"):
        return "seg", [name[: -len("_seg.npy")]]
    if lower.endswith(".zip"):
        return "roi", _without(stem, ("_rois", "-rois", "_roiset", "-roiset", "_roi"))
    if lower.endswith(GEOJSON):
        whole = name[: lower.rindex(".geojson")]
        return "geojson", list(dict.fromkeys((whole, picture_stem(name))))
    product = next((ending for ending in BY_PRODUCTS if stem.lower().endswith(ending)), "")
    if product and stem not in names.ids:
        return "beside", [stem[: -len(product)]]
    if lower.endswith(LABEL_SUFFIXES):
        stems = _without(stem, LABEL_ENDINGS)
        marked = len(stems) > 1 and not names.of(Path(name), stems[:1])
        return ("marked" if marked else "plain"), stems
    return ("beside" if lower.endswith(IMAGE_SUFFIXES) else "other"), [stem]


def _without(stem: str, endings: Sequence[str]) -> list[str]:
    """Return a stem as it is, and without the first of the endings it has."""
    ending = next((e for e in endings if stem.lower().endswith(e) and len(stem) > len(e)), "")
    return [stem, stem[: -len(ending)]] if ending else [stem]
