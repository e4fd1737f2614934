"""What one page in one browser holds: a file, the picture made of it, what a model saw in it, and its cells."""

from __future__ import annotations

import math
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellkit.cells.resize import fit_to
from cellkit.errors import UserError, readable
from cellkit.machine import check_memory
from cellkit.measure.images import Job, of_opened, write_cells
from cellkit.microscope.convert import Conversion
from cellkit.microscope.file_info import PICTURE_SUFFIXES, FileInfo
from cellkit.microscope.frames import Frame, find_frames, reason_of
from cellkit.microscope.open import READ_SUFFIXES, inspect_file, open_file, why_unread
from cellkit.models.shared.live import Live, Range, Read
from cellkit.pages.app.readings import Found, found_by
from cellkit.pages.app.views import View, picture_png, view_of
from cellkit.predict.images import Picture, UnnamedChannels, read_picture, record_of
from cellkit.predict.model import Model, checked_settings

MOST_NAME_BYTES = 160  # of the name of an uploaded file: with what is added to it, every disk takes it
MOST_PX = 2**26  # of a picture that is tried here, 8,192 x 8,192
BYTES_PER_PX = 56  # of a picture that is kept: itself, its label image, what is made to send it, a quick look meanwhile
DOWNLOADS = {  # what can be taken away: the form it is written in
    "labels": "tif",
    "rois": "roi",
    "geojson": "geojson",
    "coco": "coco",
    "table": "csv",
}
NOTHING_OPEN = "no image is open on this page", "drop one first, or choose one of the run's"
NOTHING_FOUND = "no cells are looked for in this image yet", "press Find cells first"


def checked_name(name: str) -> str:
    """Return the name under which an uploaded file is stored: its last part, with signs that every disk takes.

    Raises
    ------
    UserError
        A name of no format that is read.

    Examples
    --------
    >>> checked_name("C:\\\\data\\\\HEK <1>.ome.TIF"), checked_name("../../.ssh/x.png")
    ('HEK_1_.ome.TIF', 'x.png')
    """
    last = re.split(r"[/\\]", str(name))[-1]
    stem, dot, suffix = last.rpartition(".")
    shown = readable(last)[:120]
    if unread := why_unread(Path(last)):
        raise unread
    if f".{suffix.lower()}" not in READ_SUFFIXES or suffix.lower() == "zarr" or not dot:
        files = ", ".join(end for end in READ_SUFFIXES if end != ".zarr")
        raise UserError(f"'{shown}' is no file that can be dropped here", f"drop one image at a time: {files}")
    signs = re.sub(r"[^\w.-]+", "_", stem).encode()[-MOST_NAME_BYTES:]
    safe = signs.decode(errors="ignore").strip("-.") or "image"
    return f"{safe}.{suffix}"


@dataclass(frozen=True)
class Asked:
    """How an image is to be looked at.

    Attributes
    ----------
    frame : int
        Which scene and time of the file.
    nuclei, cytoplasm : str
        "run": as the model's run has it, or as an RGB picture shows it; "none"; or the number of a channel, from 0.
    z : str
        "run", "max", "mean", "focus" or the number of a plane.
    diameter_px : float, optional
        Of the cells, in px of the file.
    """

    frame: int = 0
    nuclei: str = "run"
    cytoplasm: str = "run"
    z: str = "run"
    diameter_px: float | None = None

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Asked:
        """Return what a page asks for.

        Raises
        ------
        UserError
            A value of another kind.
        """
        try:
            diameter = said.get("diameter_px")
            texts = {name: str(said.get(name, "run"))[:20] for name in ("nuclei", "cytoplasm", "z")}
            return cls(
                int(said.get("frame", 0)), **texts, diameter_px=None if diameter in (None, "") else float(diameter)
            )
        except (TypeError, ValueError, OverflowError):
            raise UserError("frame and diameter are numbers", "reload the page") from None


def conversion_for(asked: Asked, of_run: Conversion | None) -> Conversion | None:
    """Return how a file becomes a picture: as asked for, on top of how the model's run did it.

    Raises
    ------
    UserError
        A channel or a plane that is no number.

    Examples
    --------
    >>> conversion_for(Asked(), None) is None
    True
    >>> dict(conversion_for(Asked(nuclei="1", z="mean"), None).channels)
    {'nuclei': 1, 'cytoplasm': None}
    """
    changes: dict[str, Any] = {}
    if asked.z != "run":
        changes["projection"] = asked.z if asked.z in ("max", "mean", "focus") else _number(asked.z, "the z plane")
    if (asked.nuclei, asked.cytoplasm) != ("run", "run"):
        own = dict(of_run.channels) if of_run is not None else {}
        named = {"nuclei": asked.nuclei, "cytoplasm": asked.cytoplasm}
        channels = {
            what: own.get(what)
            if said == "run"
            else None
            if said == "none"
            else _number(said, f"the channel of {what}")
            for what, said in named.items()
        }
        changes |= {"channels": channels, "always": True}
    return replace(of_run or Conversion(), **changes) if changes else of_run


def _number(text: str, what: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{what} is '{text[:20]}'", "choose one of the list")
    return int(text)


class Session:
    """What one page holds: of what takes long one thing at a time, but for readings of its cells, of which a quick one may come
    while an exact one is under way.

    Parameters
    ----------
    folder : Path
        Of its own, for the file and what is taken away; made here.
    loaded : callable
        (model, scale of the picture) -> the `Live` model, which others may share.
    """

    def __init__(self, folder: Path, loaded: Callable[[Model, float], Live]):
        self.folder, self.loaded = folder, loaded
        self.work = threading.RLock()  # held by what takes long
        self.lock = threading.RLock()  # of what is kept: held for a moment
        folder.mkdir(mode=0o700)
        self.info: FileInfo | None = None
        self.frames: list[Frame] = []
        self.uploads = 0
        self._forget()

    def _forget(self) -> None:
        """Let go of the picture and of what was found in it."""
        self.picture: Picture | None = None
        self.model: Model | None = None
        self.settings: Mapping[str, Any] = {}
        self.ranges: Mapping[str, Range] = {}
        self.read: Read | None = None
        self.found: Found | None = None
        self.asked: dict[str, Any] = {}  # the newest settings, whose cells may be on their way
        self.conversion: Conversion | None = None
        self.frame: Frame | None = None

    # ---- the file --------------------------------------------------------------------------------------------------
    def place_for(self, name: str) -> Path:
        """Return where an uploaded file of that name is to be written, in a folder of its own."""
        safe = checked_name(name)
        with self.lock:
            self.uploads += 1
            place = self.folder / f"upload_{self.uploads}"
        place.mkdir()
        return place / safe

    def open(self, path: Path, shown: str = "") -> dict[str, Any]:
        """Take a file as the image of this page, and say what it holds; the one before is removed if it was uploaded.

        Parameters
        ----------
        shown : str
            What the page calls it.

        Raises
        ------
        UserError
            A file that cannot be read, a picture that is too large, or none in it.
        """
        try:
            info = inspect_file(path, most_px=MOST_PX)
            frames, failed = find_frames([(path, path.name)])
        except UserError:
            raise
        except Exception as error:  # whatever a reader raises on a damaged file
            raise UserError(f"{path.name} cannot be read: {reason_of(error)}", "export it again") from error
        if not frames:
            raise UserError(failed[0].reason if failed else f"{path.name} holds no picture", "drop another file")
        with self.work, self.lock:
            before = self.info.path if self.info else None
            self._forget()
            self.info, self.frames = info, frames
            if before is not None and before != path:
                self.drop(before)
        return self._facts(shown or path.name)

    def drop(self, path: Path) -> None:
        """Remove an uploaded file; what is not in the folder of this page stays."""
        if path.parent.parent == self.folder:
            shutil.rmtree(path.parent, ignore_errors=True)

    def _facts(self, shown: str) -> dict[str, Any]:
        """Return what a page says of the file, and what there is to choose from."""
        first = self.info.first
        colours = self.info.path.suffix.lower() in PICTURE_SUFFIXES and first.axes == "YXS" and first.dtype == "uint8"
        return {
            "name": shown,
            "height": first.size("Y"),
            "width": first.size("X"),
            "dtype": first.dtype,
            "um_per_px": _finite(first.um_per_px),
            "planes": first.size("Z"),
            "channels": [readable(channel.text) for channel in first.channels],
            "colours": colours,
            "frames": [_frame_words(frame, self.info) for frame in self.frames],
            "notes": [readable(note) for note in (*self.info.notes_of(0), *self.info.left_out)],
        }

    # ---- the model -------------------------------------------------------------------------------------------------
    def look(self, model: Model, asked: Asked) -> dict[str, Any]:
        """Let a model see the image, and find its cells; return what can be moved, and what is to be said.

        Raises
        ------
        UserError
            No image, no channel chosen, a picture that is too large for this page or for the memory.
        """
        with self.work:
            if not self.frames:
                raise UserError(*NOTHING_OPEN)
            if not 0 <= asked.frame < len(self.frames):
                raise UserError(f"the file has no image {asked.frame + 1}", f"choose one of {len(self.frames)}")
            frame, conversion = self.frames[asked.frame], conversion_for(asked, model.conversion)
            live: list[Live] = []

            def ask(shape: tuple[int, int], scale: float, in_windows: bool) -> None:
                if shape[0] * shape[1] > MOST_PX:
                    problem = f"the picture is {shape[0]} x {shape[1]} px, the page takes up to {MOST_PX / 1e6:.0f} million px"
                    raise UserError(problem, "cellkit predict takes larger ones")
                with self.lock:
                    self._forget()
                live.append(self.loaded(model, scale))
                needed = live[0].bytes_for(shape) + BYTES_PER_PX * shape[0] * shape[1]
                check_memory(frame.path, needed, "finding the cells of")

            try:
                picture = read_picture(frame, conversion, ask)
            except UnnamedChannels as error:
                raise UserError(
                    error.problem.replace("is named", "is chosen"),
                    "choose the channel of the nuclei, of the cytoplasm, or both",
                ) from None
            read = live[0].look(picture.image)
            found = found_by(read, {}, False)
            with self.lock:
                self.frame, self.picture, self.conversion = frame, picture, conversion
                self.model, self.settings, self.ranges = model, live[0].settings, live[0].ranges
                self.read, self.found = read, found
            um = picture.um_per_px / picture.scale
            height, width = picture.image.shape[:2]
            return {
                "height": height,
                "width": width,
                "um_per_px": _finite(um),
                "channels": picture.channels,
                "resized": picture.scale,
                "classes": list(model.classes),
                "notes": [readable(note) for note in picture.notes],
                "movable": [
                    {"name": name, "low": low, "high": high, "step": step, "value": self._shown(name),
                     "about": meaning_of(model, name)}
                    for name, (low, high, step) in self.ranges.items()
                ],
            }  # fmt: skip

    def _shown(self, name: str) -> Any:
        """Return what a setting is, in px of the file."""
        value = self.settings.get(name)
        return value / self.picture.scale if name == "diameter_px" and value is not None else value

    def _need(self) -> Picture:
        if self.picture is None or self.found is None:
            raise UserError(*(NOTHING_FOUND if self.frames else NOTHING_OPEN))
        return self.picture

    def _values(self, changed: Mapping[str, Any]) -> dict[str, Any]:
        """Return changed settings, checked; diameters, given in px of the file, in those of the picture."""
        values = {name: value for name, value in changed.items() if value is not None}
        if fixed := [name for name in values if name not in self.ranges]:
            can = ", ".join(self.ranges) or "none"
            raise UserError(f"'{str(fixed[0])[:60]}' cannot be moved for this model", f"it can move: {can}")
        values = checked_settings(self.model.backend, values) if values else {}
        if bad := next((name for name, value in values.items() if not isinstance(value, int | float)), None):
            raise UserError(f"{bad} is no number", "give a number")
        if "diameter_px" in values:
            values["diameter_px"] *= self.picture.scale
        return values

    def cells_of(
        self, changed: Mapping[str, Any], quick: bool = False, asked: Mapping[str, Any] | None = None
    ) -> bytes:
        """Read the image with some settings changed, and return its cells as `cells_bytes`, in the part that is asked for.

        A quick look does not wait for a reading that is under way; of several the newest settings are kept.

        Raises
        ------
        UserError
            Nothing was looked at, or a setting that cannot be moved, or not there.
        """
        with self.lock:
            picture, read, values = self._need(), self.read, self._values(changed)
            self.asked = values
            found = self.found if self.found.is_of(values, quick) else None
        if found is None:
            found = found_by(read, values, quick)
            with self.lock:
                if self.read is read and self.asked == values and not self.found.is_of(values, quick):
                    self.found = found
        return found.to_bytes(view_of(picture.image.shape[:2], asked))

    def picture_of(self, asked: Mapping[str, Any] | None = None) -> tuple[bytes, View]:
        """Return a part of the picture as PNG, and which part that is."""
        picture = self._need()
        view = view_of(picture.image.shape[:2], asked)
        return picture_png(picture.image, view), view

    # ---- to take away ----------------------------------------------------------------------------------------------
    def download(self, what: str, changed: Mapping[str, Any] | None = None) -> Path:
        """Write the cells, in px of the file, in the form that is asked for; return the file.

        Parameters
        ----------
        what : str
            One of `DOWNLOADS`.
        changed : mapping, optional
            The settings that are changed, as for `cells_of`; those that were read last unless given.

        Raises
        ------
        UserError
            Nothing was looked at, or no such form, or as `cells_of`.
        """
        from cellkit.formats.any import write_folder
        from cellkit.formats.coco import write_coco

        if what not in DOWNLOADS:
            raise UserError(f"no download '{what[:40]}'", f"there are: {', '.join(DOWNLOADS)}")
        with self.work:
            with self.lock:
                picture, form, found = self._need(), DOWNLOADS[what], self.found
                values = found.changed if changed is None else self._values(changed)
            if not found.is_of(values, False):
                found = found_by(self.read, values, False)
                with self.lock:
                    self.found, self.asked = found, values
            record, cells = record_of(self.frame, picture), fit_to(found.cells, picture.file_shape)
            folder, name, classes = self.folder / "out", record.image_id, self.model.classes
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)
            folder.mkdir()
            if form == "coco":
                return write_coco(folder / f"{name}.json", [record], [cells], classes, with_scores=True)
            if form == "csv":
                rounded = cells.with_scores(cells.scores.round(6))  # as in a COCO file
                job = Job(record, rounded, classes, frame=self.frame)
                with open_file(self.frame.path, self.conversion.axes if self.conversion else None) as opened:
                    how = self.conversion or Conversion()
                    table = of_opened(opened, self.frame.scene, self.frame.time, how, job)
                return write_cells(folder / f"{name}_cells.csv", table)
            write_folder(folder, [record], [cells], classes, form)
            return next(path for path in sorted(folder.iterdir()) if path.is_file())

    def close(self) -> None:
        """Remove the files of this page, and let go of all else."""
        with self.work, self.lock:
            self._forget()
            self.frames, self.info = [], None
            shutil.rmtree(self.folder, ignore_errors=True)


def meaning_of(model: Model, setting: str) -> str:
    """Return what a setting of a model's backend means, without what it is where nobody sets it."""
    from cellkit.models import backend_module

    return (backend_module(model.backend).Settings.model_fields[setting].description or "").split("; null")[0]


def _frame_words(frame: Frame, info: FileInfo) -> str:
    """Say which scene and time of a file this is; "" of the only one.

    A scene has its name, a time its number.
    """
    scene = info.series[frame.scene]
    parts = [f"scene {readable(scene.name) or frame.scene + 1}"] if len(info.series) > 1 else []
    parts += [f"time {frame.time + 1} of {scene.size('T')}"] if scene.size("T") > 1 else []
    return ", ".join(parts)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
