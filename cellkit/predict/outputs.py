"""What a prediction writes, and where: the file of all images, label files that nobody corrected, pictures with outlines."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cellkit.cells.instances import Instances
from cellkit.cluster.opened import current
from cellkit.errors import UserError
from cellkit.files import atomic_path, locked
from cellkit.formats.large_labels import is_large_file, refuse_changed_large
from cellkit.microscope.journal import remove_remains
from cellkit.microscope.overlay_mark import marked

OVERLAY_PX, MOST_LARGER = 1000, 100  # a picture of a few px is not drawn with lines of a thousand px


def parts_folder(out: Path) -> Path:
    """Return the folder of the images that are finished while a prediction into `out` is under way."""
    return out.with_name(f"{out.name}.parts")


@contextmanager
def parts_of(out: Path, folders: Sequence[Path], keep: bool = False) -> Iterator[Path]:
    """Hold the folder of finished images beside `out`; it goes when the prediction ends well, unless it is kept.

    Raises
    ------
    UserError
        It cannot be written, or another process predicts into the same file.
    """
    parts = parts_folder(out)
    if out.is_dir() or out.suffix.lower() != ".json":
        what = "is a folder" if out.is_dir() else "does not end with .json"
        raise UserError(f"'{out}' {what}", "name a JSON file for the result: -o OUT.json")
    for folder in (parts, *folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".probe").write_bytes(b"")
            (folder / ".probe").unlink()
        except OSError as error:
            raise UserError(f"'{folder}' cannot be written: {error.strerror or error}", "name another place") from None
    busy = f"'{out}' is being written by another process"
    with locked(parts / ".lock", busy, "wait for it, or name another file"):
        try:
            yield parts
        except BaseException:
            if not any(path.name != ".lock" for path in parts.iterdir()):  # nothing to go on from
                shutil.rmtree(parts, ignore_errors=True)
            raise
    if not keep:
        shutil.rmtree(parts)
    if current() is not None:  # its workers may have been killed while they wrote
        for folder in folders:
            remove_remains(folder)


def ending_of(form: str, labels: str | Path | None) -> str:
    """Return how the files of a form end.

    Raises
    ------
    UserError
        A form that is none, or is called after the picture; no folder for it.
    """
    from cellkit.formats.any import writable

    forms = {name: module for name, module in writable().items() if not getattr(module, "NEEDS_PICTURES", False)}
    if form not in forms:
        later = "; for others predict first, then: cellkit labels OUT.json -o DIR --format F --images IMAGES"
        raise UserError(f"no format '{form}' to predict into", f"choose from {', '.join(forms)}{later}")
    if form != "tif" and labels is None:
        raise UserError(f"--format {form}, and no folder for the files", "name it: --labels DIR")
    return forms[form].WRITES[form]


def refuse_corrections(paths: Sequence[Path]) -> None:
    """Refuse to write over files of cells that somebody corrected since, before anything is predicted.

    Raises
    ------
    UserError
        Naming the file.
    """
    from cellkit.formats.any import written_here
    from cellkit.formats.label_images import refuse_changed
    from cellkit.formats.labels import ENDINGS, refuse_picture

    for path in paths:
        if is_large_file(path):
            refuse_changed_large(path)
        elif path.name.lower().endswith(ENDINGS):
            refuse_picture(path)
            refuse_changed(path)
        elif path.is_file() and not written_here(path):
            raise UserError(f"{path} is there and not as cellkit wrote it: it may hold corrections", "move it away")


def write_overlay(path: Path, image: np.ndarray, found: Instances, classes: Sequence[str], stamp: str = "") -> None:
    """Write an image with the outlines of its cells as PNG, marked as such (`overlay_mark`); small images are enlarged."""
    from cellkit.show.overlays import show_overlay
    from cellkit.show.style import bare_axes, to_png

    height, width = image.shape[:2]
    ax = bare_axes(width / 100, height / 100)
    show_overlay(image, found, ax=ax, classes=classes, legend=False)
    larger = min(max(1, round(OVERLAY_PX / max(height, width))), MOST_LARGER)
    with atomic_path(path) as temporary:
        temporary.write_bytes(marked(to_png(ax, 100 * larger), stamp))
