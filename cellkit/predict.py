"""Any model on any images: found by name, run over files in a stream, resumed after a kill, bad images set aside.

What comes out is a complete COCO file with scores, in the pixels of the files that went in. While a prediction runs, each
finished image is a COCO file of its own in ``OUT.parts/``, named by a hash of model, image and settings; repeating the
command takes up what is there.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.conversion import PERCENTILES, Conversion
from cellkit.errors import Quarantined, UserError, nearest
from cellkit.files import atomic_path, read_json, sha256_file, sha256_tree
from cellkit.instances import Instances
from cellkit.leftout import LeftOut
from cellkit.log import LOG
from cellkit.records import ImageRecord
from cellkit.resize import fit_to

AUTO = "auto"
AUTO_IMAGES = 5
OVERLAY_PX, MOST_LARGER = 1000, 100  # a picture of a few px is not drawn with lines of a thousand px
CONVERT, LABEL = "01_convert", "02_label_with_cellpose"
AS_IT_IS = Conversion({"red": 0, "green": 1, "blue": 2}, percentiles=None)


# ---- which model ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Model:
    """A model that can be loaded.

    Attributes
    ----------
    name : str
        As it was asked for.
    backend : str
        Module of `cellkit.backends`.
    checkpoint : Path or None
        None where nothing was learned (threshold).
    classes : tuple of str
        Class k of a prediction is ``classes[k - 1]``; empty when the model knows none.
    config : dict
        Settings of the prediction: those of the checkpoint's card, then what was asked for.
    conversion : Conversion or None
        How the run that made the model converted its files; None when it comes from no run.
    own_px : bool
        Whether ``config["diameter_px"]`` was asked for and is in pixels of the files; else, as a training left it, in
        pixels of the pictures the model is shown, which a run with ``convert.scale`` resized.
    """

    name: str
    backend: str
    checkpoint: Path | None
    classes: tuple[str, ...]
    config: dict[str, Any]
    conversion: Conversion | None = None
    own_px: bool = False

    @property
    def sha256(self) -> str:
        """Of the checkpoint; "" where there is none."""
        return sha256_file(self.checkpoint) if self.checkpoint else ""

    def load(self, scale: float = 1.0) -> Callable[[Iterable[np.ndarray]], Iterator[Instances]]:
        """Return the function from a stream of (H, W, 3) uint8 to their cells; the pictures were resized by `scale`."""
        from cellkit.backends import get_backend

        backend = get_backend(self.backend)
        settings = backend.Settings(**self.config)
        if self.own_px:
            settings = settings.model_copy(update={"diameter_px": self.config["diameter_px"] * scale})
        return backend.load(self.checkpoint, settings)


def find_model(spec: str | Path, overrides: Mapping[str, Any] | None = None) -> Model:
    """Return the model of that name; never another one in its place.

    Parameters
    ----------
    spec : str or Path
        The path of a checkpoint; ``RUN:NAME``, a model of a finished run with the settings it used (``cellpose_tuned``,
        ``cellpose_base``, ``cellpose`` = the better of the two, ``maskrcnn``, ``threshold``); ``starter``; ``threshold``.
    overrides : mapping, optional
        Settings for this prediction, e.g. ``{"diameter_px": 40}``: the diameter in pixels of the files.

    Raises
    ------
    UserError
        No such model, or a setting it does not have.
    """
    from cellkit.backends import backend_names, needs_checkpoint
    from cellkit.model import find_weights, of_a_run

    text = str(spec)
    learnt_nothing = [name for name in backend_names() if not needs_checkpoint(name)]
    if text in learnt_nothing and not Path(text).is_file():
        model = Model(text, text, None, (), {})
    else:
        model = _of_checkpoint(text, find_weights(text, learnt_nothing))
    run, _ = of_a_run(text)
    if run and not Path(text).is_file():
        model = replace(model, conversion=_run_conversion(Path(run)))
    checked = checked_settings(model.backend, overrides or {})
    return replace(model, config=model.config | checked, own_px="diameter_px" in checked)


def _of_checkpoint(name: str, path: Path) -> Model:
    """Return the model in a checkpoint file: its card says which backend; without one it is a published Cellpose."""
    from cellkit import weights
    from cellkit.backends import backend_module

    if path.suffix != ".safetensors":
        return Model(name, "cellpose_unet", path, (), {})
    card = weights.read_card(path)
    known = backend_module(card.backend).Settings.model_fields
    config = {key: card.config[key] for key in known if card.config.get(key) is not None}
    return Model(name, card.backend, path, card.classes, config)


def _run_conversion(run_dir: Path) -> Conversion | None:
    """Return how the run's images were made, so that new ones go the same way.

    Where the run named its channels by colour (its images came as RGB pictures), new RGB pictures are converted too, and
    this is said; else they are taken for converted ones.
    """
    from cellkit.manifest import finished_entries, read_manifest

    stages = finished_entries(read_manifest(run_dir))
    told = stages.get(CONVERT, {}).get("config", {})
    if not told.get("channels"):
        return None
    named = {what: channel for what, channel in told["channels"].items() if channel is not None}
    by_colour = bool(named) and all(channel in ("red", "green", "blue") for channel in named.values())
    if by_colour and named != {"nuclei": "blue", "cytoplasm": "green"}:
        words = ", ".join(f"{what} = {channel}" for what, channel in named.items())
        LOG.warning(f"RGB pictures are converted as in {run_dir}: {words}")
    kept = {key: told[key] for key in ("projection", "scale", "axes", "percentiles_of") if key in told}
    if told.get("percentiles_of") == "batch":
        kept["limits"] = _limits_of_run(run_dir / "conversion.csv")
    percentiles = tuple(told.get("percentiles", PERCENTILES))
    return Conversion(
        dict(told["channels"]), percentiles=percentiles, always=by_colour, made=run_dir / "images", **kept
    )


def _limits_of_run(table: Path) -> dict[str, tuple[float, float]]:
    """Return what became 0 and 255 in each colour of a run scaled as one batch: every row of a colour says the same."""
    import csv

    with open(table, newline="", encoding="utf-8") as file:
        return {row["colour"]: (float(row["low"]), float(row["high"])) for row in csv.DictReader(file)}


def checked_settings(backend: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a prediction, each known to the backend and within its limits.

    Raises
    ------
    UserError
        Naming the setting, what came and what is wanted.

    Examples
    --------
    >>> checked_settings("threshold", {"diameter_px": 30})
    {'diameter_px': 30.0}
    """
    from pydantic import ValidationError

    from cellkit.backends import backend_module
    from cellkit.settings import accepted, schema_of

    module = backend_module(backend)
    known = schema_of(module.Settings)["properties"]
    checked: dict[str, Any] = {}
    for key, value in overrides.items():
        if key not in known:
            raise UserError(f"{backend} has no setting '{key}'{nearest(key, known)}", f"it has: {', '.join(known)}")
        try:
            if key == "diameter_px" and value == AUTO:
                checked[key] = value
            else:
                checked[key] = getattr(module.Settings(**{key: value}), key)
        except ValidationError:
            raise UserError(f"{key} is {value!r}", f"{key} is {accepted(known[key])}") from None
    return checked


# ---- which images --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Frame:
    """One picture to be: a scene and time of a file, its id, and the file's path relative to the folder given.

    `notes` and `left_out` are what the header says of it, see `cellkit.file_info.FileInfo`; unknown before a PNG or JPEG is
    opened.
    """

    path: Path
    relative: str
    image_id: str
    scene: int = 0
    time: int = 0
    suffix: str = ""
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def find_images(
    named: Sequence[str | Path], avoid: Sequence[Path] = (), outside: list[Quarantined] | None = None
) -> list[tuple[Path, str]]:
    """Return (path, relative path) of every image that files, folders and patterns name; sorted, each once.

    Parameters
    ----------
    named : sequence
        A file, a folder (with all below it; label images and hidden files are left out), or a pattern such as
        ``plate/*.tif`` (``**`` = any depth).
    avoid : sequence of Path
        Folders below one of those named that are no input: where results are written.
    outside : list, optional
        Takes the links in a folder that lead out of it, and the pictures there of a kind that is not read; without it links
        are an error. A link named itself is followed.

    Raises
    ------
    UserError
        Nothing there, a folder without images, or a pattern without match.
    """
    from cellkit.channelfiles import tell_seeming_channels
    from cellkit.open import why_unread

    links: list[Quarantined] = []
    unread_files: list[Quarantined] = []
    found: dict[Path, tuple[Path, str]] = {}
    avoided = [Path(folder).resolve() for folder in avoid]
    for name in named:
        root, pairs = _images_of(str(name))
        below = [folder for folder in avoided if folder != root.resolve() and folder.is_relative_to(root.resolve())]
        for path, relative in pairs:
            unread = why_unread(path) if path != Path(name) else None
            if unread and outside is not None:
                unread_files.append(Quarantined(str(path), "; ".join(str(unread).splitlines())))
                continue
            real = Path(os.path.realpath(path))  # a loop of links stays as it is, and is set aside
            if Path(name) == root and path != root and not real.is_relative_to(root.resolve()):
                links.append(
                    Quarantined(str(path), f"is a link that leads out of {root}; copy the file there, or name it")
                )
            elif not any(real.is_relative_to(folder) for folder in below):
                found.setdefault(real, (path, relative))
    listed = sorted(found.values(), key=lambda pair: (pair[1], str(pair[0])))
    if links and (outside is None or not listed):
        raise UserError(f"{links[0].item} {links[0].reason.split('; ')[0]}", "copy the file there, or name it")
    if outside is not None:
        outside += [*links, *unread_files, *_called_as_labels(named, [path for path, _ in listed], avoided)]
    if not listed and unread_files:
        problem, _, remedy = unread_files[0].reason.partition("; ")
        raise UserError(f"none of the {len(unread_files)} image(s) is read: {problem}", remedy)
    tell_seeming_channels([path for path, _ in listed])
    if not listed:
        raise UserError(f"no image in {', '.join(map(str, named))}", "give files, folders or patterns of images")
    return listed


def _called_as_labels(
    named: Iterable[str | Path], images: Sequence[Path], avoided: Sequence[Path]
) -> list[Quarantined]:
    """Return the files of the folders that are called as label images are (double_label.tif), and after none of the images."""
    from cellkit.folders import IMAGE_SUFFIXES, LABEL_FOLDERS, NOT_IMAGES, list_files
    from cellkit.names import plain, stem_of

    stems = {plain(stem_of(path)) for path in images}
    alone = []
    for root in (Path(name) for name in named if Path(name).is_dir()):
        for path in list_files(root, IMAGE_SUFFIXES, keep_labels=True):
            stem, folders = plain(stem_of(path)), path.relative_to(root).parts[:-1]
            ends = [k for k, sign in enumerate(stem) if sign in " _.-"]
            in_labels = any(plain(folder) in LABEL_FOLDERS for folder in folders)
            ours = in_labels or any(Path(os.path.realpath(path)).is_relative_to(folder) for folder in avoided)
            if stem.endswith(NOT_IMAGES) and not ours and not any(stem[:end] in stems for end in ends):
                told = "is called as a label image is, and after no image here; to use it, give the file itself"
                alone.append(Quarantined(str(path), told))
    return alone


def _images_of(name: str) -> tuple[Path, list[tuple[Path, str]]]:
    """Return the folder that one argument looks into, and the images it names, each with its path relative to that."""
    from cellkit.folders import IMAGE_SUFFIXES, is_run_folder, list_files, odd_zarrs
    from cellkit.manifest import MANIFEST
    from cellkit.open import READ_SUFFIXES, is_image_folder, is_zarr_by_another_name

    path = Path(name)
    if path.is_dir() and not is_image_folder(path) and not is_zarr_by_another_name(path):
        files = list_files(path, IMAGE_SUFFIXES) + odd_zarrs(path)
        runs = [told.parent.name for told in path.rglob(MANIFEST) if told.parent != path and is_run_folder(told.parent)]
        if runs:
            LOG.warning(f"run folders in {path} are no data and not read: {', '.join(sorted(runs))}")
        if not files:
            raise UserError(f"no image in the folder {path}", f"images end with {', '.join(READ_SUFFIXES)}")
        return path, [(file, file.relative_to(path).as_posix()) for file in files]
    if os.path.lexists(path):
        return path, [(path, path.name)]
    if not glob.has_magic(name):
        raise UserError(f"no file or folder at {path}", "give files, folders or patterns of images")
    fixed = path
    while glob.has_magic(str(fixed)) and not fixed.is_dir():  # brackets of a folder that is there are its name
        fixed = fixed.parent
    below = str(path.relative_to(fixed))
    pattern = os.path.join(glob.escape(str(fixed)), below)
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    matches = [match for match in matches if match.is_file() or is_image_folder(match)]
    if not matches:
        why = "; in a pattern [1] stands for 1: write [[]1] for a file whose name has [1]" if "[" in below else ""
        raise UserError(f"no file matches '{name}'{why}", "give files, folders or patterns of images")
    return fixed, [(match, match.relative_to(fixed).as_posix()) for match in matches]


def find_frames(listed: Sequence[tuple[Path, str]]) -> tuple[list[Frame], list[Quarantined]]:
    """Return every scene and time of the files, with ids that are unique; files whose header cannot be read are set aside.

    Ids come from the path below the folder given; where two folders were given and hold files of one name, from the path
    below the folder that holds both.

    Raises
    ------
    UserError
        Two images still have one id.
    """
    from cellkit.names import check_ids

    listed = _with_ids_apart(listed)
    frames: list[Frame] = []
    quarantined: list[Quarantined] = []
    for path, relative in listed:
        try:
            frames += _frames_of(path, relative)
        except Exception as error:  # whatever a reader raises on a damaged file
            quarantined.append(Quarantined(str(path), _reason(error)))
    check_ids((frame.image_id, f"{frame.path}{frame.suffix}") for frame in frames)
    return frames, quarantined


def _with_ids_apart(listed: Sequence[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Return (path, relative path), the latter below the folder that holds all, where two images would have one id."""
    from cellkit.names import check_ids

    try:
        check_ids((_id_of(relative), str(path)) for path, relative in listed)
    except UserError:
        common = Path(os.path.commonpath([path.absolute().parent for path, _ in listed]))
        return [(path, path.absolute().relative_to(common).as_posix()) for path, _ in listed]
    return list(listed)


def _id_of(relative: str, suffix: str = "") -> str:
    """Return the image id of a relative path; folders called ``images`` do not count, as in `cellkit.sources`."""
    from cellkit.names import image_id_of

    *folders, name = relative.split("/")
    return image_id_of("/".join([*(folder for folder in folders if folder.lower() != "images"), name]), suffix)


def _frames_of(path: Path, relative: str) -> list[Frame]:
    from cellkit.file_info import PICTURE_SUFFIXES
    from cellkit.open import inspect_file

    if path.suffix.lower() in PICTURE_SUFFIXES:  # one frame; opened when its turn comes
        return [Frame(path, relative, _id_of(relative))]
    info = inspect_file(path)
    return [
        Frame(path, relative, _id_of(relative, suffix), scene, time, suffix, info.notes_of(scene), info.left_out)
        for scene, time, suffix in info.frames()
    ]


def _reason(error: Exception) -> str:
    text = "; ".join(str(error).splitlines()) or type(error).__name__
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


# ---- pixels --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Picture:
    """What a model is shown, (H, W, 3) uint8, and the file it comes from: its size in px, channels and pixel size.

    `scale` is by how much the picture was resized; `notes` are what a user has to know of how it was read.
    """

    image: np.ndarray
    file_shape: tuple[int, int]
    channels: str
    um_per_px: float
    scale: float = 1.0
    notes: tuple[str, ...] = ()


def read_picture(
    frame: Frame, conversion: Conversion | None, ask: Callable[[tuple[int, int], float], None] | None = None
) -> Picture:
    """Read one frame as the picture a model is shown.

    A PNG or JPEG in colours of 8 bits is used as it is: nuclei blue, cytoplasm green, as notebook 01 writes them. All
    else, also a grey picture that is stored as equal colours, is converted.

    Parameters
    ----------
    ask : callable, optional
        Called with the size of the picture to be, in px, and its scale, before its pixels are read; may refuse it.

    Raises
    ------
    UserError
        A file that cannot be read, or one that must be converted while no channel is named.
    """
    from cellkit.convert import convert_frame
    from cellkit.file_info import PICTURE_SUFFIXES
    from cellkit.open import open_file

    with open_file(frame.path, conversion.axes if conversion else None) as opened:
        series = opened.info.series[frame.scene]
        size, um_per_px = (series.size("Y"), series.size("X")), series.um_per_px
        colours = frame.path.suffix.lower() in PICTURE_SUFFIXES and series.axes == "YXS" and series.dtype == "uint8"
        grey = False
        as_it_is = colours and not (conversion and conversion.always and not conversion.made_already(frame.path))
        if ask is not None:
            scale = 1.0 if as_it_is or conversion is None else conversion.scale
            ask((max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), scale)
        if as_it_is:
            shown = convert_frame(opened, 0, 0, AS_IT_IS)
            grey = bool(shown.image.any()) and _equal_colours(shown.image)
            if not grey:
                return Picture(shown.image, size, shown.channels, um_per_px, notes=opened.info.notes_of(frame.scene))
        if conversion is None or not conversion.names_channels:
            raise _unnamed_channels(frame, series, grey)
        shown = convert_frame(opened, frame.scene, frame.time, conversion)
        notes = tuple(dict.fromkeys(level.note for level in shown.levels if level.note))
        return Picture(shown.image, size, shown.channels, um_per_px, conversion.scale, notes)


def _equal_colours(image: np.ndarray) -> bool:
    return np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 1], image[..., 2])


def _unnamed_channels(frame: Frame, series, grey: bool) -> UserError:
    """Say which channels a file has, and that neither nuclei nor cytoplasm was named."""
    names = [f"{k} {channel.name or 'unnamed'}" for k, channel in enumerate(series.channels)]
    what = "the same grey in red, green and blue" if grey else f"{len(names)} channel(s): {', '.join(names)}"
    first = "0" if grey else series.channels[0].name or "0"
    return UserError(
        f"{frame.path.name} has {what}; neither nuclei nor cytoplasm is named",
        f"say which channel is which: --nuclei C and / or --cytoplasm C, e.g. --nuclei {first}",
    )


def convert_files(
    images: Sequence[str | Path], out: str | Path, conversion: Conversion, workers: int = 1
) -> tuple[list[Path], list[Quarantined]]:
    """Write every scene and time of the files as ``out/<image_id>.png``, and ``out/conversion.csv``: what was done.

    Repeated, it skips the files that are done, see `cellkit.batch.convert_batch`.

    Returns
    -------
    written : list of Path
    quarantined : list of Quarantined

    Raises
    ------
    UserError
        No image, or none that could be converted, or a folder that holds the images themselves, or cannot be written.
    """
    from cellkit.batch import convert_batch
    from cellkit.open import open_file
    from cellkit.tables import write_table

    out = Path(out)
    links: list[Quarantined] = []
    listed = _with_ids_apart(find_images(images, avoid=[out], outside=links))
    frames = [Frame(path, text, _id_of(text)) for path, text in listed]
    _refuse_inputs_as_outputs(frames, [out])
    if not conversion.names_channels:
        with open_file(frames[0].path, conversion.axes) as opened:
            raise _unnamed_channels(frames[0], opened.info.series[0], False)
    named = [(frame.path, frame.image_id) for frame in frames]
    done = convert_batch(named, out, conversion, workers)
    if not done.rows:
        raise _none_used(len(named), done.quarantined)
    write_table(out / "conversion.csv", done.rows)
    return done.written, links + done.quarantined


def _none_used(images: int, quarantined: Sequence[Quarantined]) -> UserError:
    """Say that nothing is left, and why the first image was set aside."""
    first = quarantined[0]
    problem, _, remedy = first.reason.rpartition("; ")
    named = "" if Path(first.item).name in first.reason else f"{first.item}: "
    return UserError(
        f"none of the {max(images, len(quarantined))} image(s) could be used; {named}{problem or remedy}",
        remedy if problem else "`cellkit inspect FILE` tells what a file holds",
    )


# ---- the prediction ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Predicted:
    """What a prediction did: the file, images and cells in it, cells per class, images resumed, images set aside."""

    path: Path
    images: int
    cells: int
    cells_by_class: dict[str, int]
    resumed: int
    quarantined: list[Quarantined]


def predict_files(
    model: Model,
    images: Sequence[str | Path],
    out: str | Path,
    labels: str | Path | None = None,
    overlays: str | Path | None = None,
    conversion: Conversion | None = None,
) -> Predicted:
    """Find the cells of every image and write them as one COCO file with scores; one image in memory at a time.

    Parameters
    ----------
    model : Model
        A ``diameter_px`` of "auto" is estimated from a few of the images (backends that can).
    images : sequence
        Files, folders, patterns; see `find_images`.
    out : path
        The COCO file. Image ids, file names and sizes are those of the files; written last and whole.
    labels : path, optional
        Folder for one label image (TIFF) per image.
    overlays : path, optional
        Folder for one PNG per image with the outlines drawn.
    conversion : Conversion, optional
        For files that are no RGB pictures; default that of the model's run.

    Returns
    -------
    Predicted
        The same for a prediction that was killed and repeated.

    Raises
    ------
    UserError
        No image, none that could be used, two images of one id, or a place that cannot be written.
    """
    out, folders = Path(out), [Path(folder) for folder in (labels, overlays) if folder is not None]
    conversion = conversion or model.conversion
    links: list[Quarantined] = []
    frames, quarantined = find_frames(find_images(images, avoid=folders, outside=links))
    quarantined = links + quarantined
    _refuse_inputs_as_outputs(frames, [out.parent / out.name, *folders])
    if labels is not None:
        _refuse_corrections(frames, Path(labels))
    with _parts_of(out, folders) as parts:
        model = _with_diameter(model, frames, conversion)
        job = _Job(model, conversion, parts, labels, overlays, out)
        done, resumed = job.run(frames, quarantined)
        if not done:
            raise _none_used(len(frames), quarantined)
        job.tell(frames)
        left = dict.fromkeys((str(frame.path), text) for frame in frames for text in frame.left_out)
        quarantined += [Quarantined(path, f"not read: {text}") for path, text in left]
        info = {"description": "cellkit", "model": model.name, "backend": model.backend, "model_sha256": model.sha256,
                "settings": model.config, "conversion": job.conversion_json(),
                "quarantined": [{"item": q.item, "reason": q.reason} for q in quarantined]}  # fmt: skip
        counts = _assemble(out, done, info)
    return Predicted(out, len(done), sum(counts.values()), counts, resumed, quarantined)


class _Job:
    """One call of `predict_files`: what makes an image's result what it is, and where it waits."""

    def __init__(self, model: Model, conversion: Conversion | None, parts: Path, labels, overlays, out: Path):
        self.model, self.conversion, self.parts, self.out = model, conversion, parts, out
        self.labels = Path(labels) if labels is not None else None
        self.overlays = Path(overlays) if overlays is not None else None
        self.hashed: tuple[Path | None, str] = (None, "")
        self.notes: dict[str, tuple[str, ...]] = {}  # of the pictures that were read, by image id
        self.ground = json.dumps(
            [model.backend, model.sha256, model.config, list(model.classes), self.conversion_json(), _code_sha256(),
             str(self.overlays.resolve()) if self.overlays else None], sort_keys=True
        )  # fmt: skip

    def conversion_json(self) -> dict[str, Any] | None:
        c = self.conversion
        return None if c is None or not (c.names_channels or c.always) else c.to_json()

    def part(self, frame: Frame) -> Path:
        """Return the file that holds (or will hold) the result of one image."""
        if self.hashed[0] != frame.path:
            self.hashed = (frame.path, sha256_tree(frame.path))
        about = [self.ground, self.hashed[1], frame.relative, frame.image_id, frame.scene, frame.time]
        return self.parts / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:40]}.json"

    def run(self, frames: Sequence[Frame], quarantined: list[Quarantined]) -> tuple[list[Path], int]:
        """Do what is not done yet; return the parts in the order of the frames, and how many were there already."""
        from cellkit.loop import progress

        part_of: dict[Frame, Path] = {}
        todo: list[Frame] = []
        for frame in frames:
            try:
                part_of[frame] = self.part(frame)
            except OSError as error:
                quarantined.append(Quarantined(str(frame.path), _reason(error)))
                continue
            if not self._resume(frame, part_of[frame]):
                todo.append(frame)
        resumed = len(part_of) - len(todo)
        if resumed:
            LOG.info(f"predict: {resumed} of {len(frames)} images were done before")
        for frame, picture, found in progress(self._stream(todo, quarantined), "predict", len(todo)):
            self._keep(frame, picture, found, part_of[frame])
        set_aside = {item.item for item in quarantined}
        return [path for frame, path in part_of.items() if _name_of(frame) not in set_aside], resumed

    def _stream(self, todo: Sequence[Frame], quarantined: list[Quarantined]) -> Iterator[tuple]:
        """Yield frame, picture and cells. Where a diameter was asked for, pictures of another scale have their turn later."""
        from cellkit.machine import check_memory

        scale = self.conversion.scale if self.conversion and self.conversion.names_channels else 1.0
        left = LeftOut()
        while todo:
            later: dict[float, list[Frame]] = {}
            segment = self.model.load(scale)

            def read(frame: Frame, scale=scale, later=later, segment=segment) -> Picture | None:
                def ask(shape: tuple[int, int], own: float) -> None:  # of another scale: when its turn comes
                    if hasattr(segment, "bytes_for") and (own == scale or not self.model.own_px):
                        check_memory(frame.path, segment.bytes_for(shape), "finding the cells of")

                picture = read_picture(frame, self.conversion, ask)
                if self.model.own_px and picture.scale != scale:
                    later.setdefault(picture.scale, []).append(frame)
                    return None
                return picture

            for frame, picture, found in segmented(segment, todo, read, quarantined):
                left.take(segment, frame.image_id)
                yield frame, picture, found
            scale, todo = next(
                iter(later.items()), (scale, ())
            )  # a picture is resized by the run's scale, or not at all
        left.say("predict")

    def _resume(self, frame: Frame, part: Path) -> bool:
        """Take up what an earlier call left for this image; False when there is nothing."""
        from cellkit.coco import read_coco

        if not part.is_file() or (self.overlays and not (self.overlays / f"{frame.image_id}.png").is_file()):
            return False
        if self.labels:
            self._write_labels(frame, read_coco(part).instances[0])
        return True

    def _keep(self, frame: Frame, picture: Picture, found: Instances, part: Path) -> None:
        """Write everything of one image; its part last."""
        from cellkit.coco import write_coco

        self.notes[frame.image_id] = picture.notes
        if self.overlays:
            write_overlay(self.overlays / f"{frame.image_id}.png", picture.image, found, self.model.classes)
        found = fit_to(found, picture.file_shape)
        if self.labels:
            self._write_labels(frame, found)
        record = ImageRecord(
            image_id=frame.image_id,
            path=frame.relative,
            height_px=picture.file_shape[0],
            width_px=picture.file_shape[1],
            channels=picture.channels,
            um_per_px=picture.um_per_px,
            source=f"{frame.relative}{frame.suffix.replace('_s', ' scene ').replace('_t', ' t ')}",
            file=frame.relative,
            scene=frame.scene,
            time=frame.time,
        )
        write_coco(part, [record], [found], self.model.classes, with_scores=True)

    def tell(self, frames: Sequence[Frame]) -> None:
        """Say on stderr what a user has to know of how the pictures were read; of those taken up, what the header says."""
        from cellkit.batch import tell_notes

        told = [(frame.image_id, note) for frame in frames for note in self.notes.get(frame.image_id, frame.notes)]
        tell_notes([{"image_id": name, "note": note} for name, note in told], "`cellkit inspect` says them of a file")

    def _write_labels(self, frame: Frame, found: Instances) -> None:
        from cellkit.format_labels import refuse_picture
        from cellkit.labels import write_labels
        from cellkit.stamps import stamp_of

        path = self.labels / f"{frame.image_id}.tif"
        refuse_picture(path)
        labels = found.paint()
        write_labels(path, labels, stamp_of(labels))


def segmented(
    segment: Callable, frames: Iterable[Frame], read: Callable[[Frame], Picture | None], quarantined: list[Quarantined]
) -> Iterator[tuple[Frame, Picture, Instances]]:
    """Yield frame, picture and cells in order; images that cannot be read or that the model fails on are set aside.

    What `read` returns None for is left out.

    A model may take several images before it answers. When it fails, each image it holds is tried alone, so that only
    the image at fault is lost, and the stream goes on.
    """
    frames, waiting = iter(frames), deque()

    def stream() -> Iterator[np.ndarray]:
        for frame in frames:
            try:
                picture = read(frame)
            except Exception as error:  # whatever a reader raises on a damaged file
                quarantined.append(Quarantined(_name_of(frame), _reason(error)))
                continue
            if picture is not None:
                waiting.append((frame, picture))
                yield picture.image

    while True:
        try:
            for found in segment(stream()):
                yield *waiting.popleft(), found
            return
        except Exception:
            if not waiting:
                raise
        while waiting:
            frame, picture = waiting.popleft()
            try:
                (found,) = segment([picture.image])
            except Exception as error:
                quarantined.append(Quarantined(_name_of(frame), _reason(error)))
                continue
            yield frame, picture, found


def _name_of(frame: Frame) -> str:
    return f"{frame.path}{frame.suffix}"


def _with_diameter(model: Model, frames: Sequence[Frame], conversion: Conversion | None) -> Model:
    """Replace a diameter of "auto" by one estimated from a few evenly spaced images."""
    from cellkit.backends import get_backend

    if model.config.get("diameter_px") != AUTO:
        return model
    backend = get_backend(model.backend)
    if not hasattr(backend, "estimate_diameter"):
        raise UserError(f"{model.backend} cannot estimate a diameter", "give it in px: --diameter 30")
    places = np.unique(np.linspace(0, len(frames) - 1, min(AUTO_IMAGES, len(frames))).round().astype(int))
    pictures = []
    for place in places.tolist():
        try:
            pictures.append(read_picture(frames[place], conversion))
        except Exception as error:  # it is set aside, with the same reason, when its turn comes
            LOG.warning(f"predict: no diameter from {frames[place].path}: {_reason(error)}")
    config = {key: value for key, value in model.config.items() if key != "diameter_px"}
    if pictures:
        scale = pictures[0].scale
        shown = [picture.image for picture in pictures if picture.scale == scale]
        config["diameter_px"] = round(
            backend.estimate_diameter(model.checkpoint, shown, backend.Settings(**config)) / scale, 2
        )
        LOG.info(f"predict: diameter estimated as {config['diameter_px']} px")
    return replace(model, config=config, own_px=bool(pictures))


@lru_cache(maxsize=1)
def _code_sha256() -> str:
    """Return the hash of this package's code: a part made by other code is not taken up."""
    package = Path(__file__).parent
    files = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    return hashlib.sha256("".join(f"{name} {sha256_tree(package / name)}\n" for name in files).encode()).hexdigest()


# ---- what is written -----------------------------------------------------------------------------------------------
@contextmanager
def _parts_of(out: Path, folders: Sequence[Path]) -> Iterator[Path]:
    """Hold the folder of finished images beside `out`; it goes when the prediction ends well.

    Raises
    ------
    UserError
        It cannot be written, or another process predicts into the same file.
    """
    from filelock import FileLock, Timeout

    parts = out.with_name(f"{out.name}.parts")
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
    lock = FileLock(parts / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"'{out}' is being written by another process", "wait for it, or name another file") from None
    try:
        yield parts
    except BaseException:
        lock.release()
        raise
    lock.release()
    shutil.rmtree(parts)


def _refuse_inputs_as_outputs(frames: Sequence[Frame], places: Sequence[Path]) -> None:
    """Refuse to write over the images: an output folder that holds some, or an output file that is one."""
    files = {Path(os.path.realpath(frame.path)) for frame in frames}
    folders = {path.parent for path in files}
    for place in places:
        if place.resolve() in folders | files:
            raise UserError(f"results would be written over the images in '{place}'", "name another place for them")


def _refuse_corrections(frames: Sequence[Frame], folder: Path) -> None:
    """Refuse to write over label images that somebody corrected since, before anything is predicted."""
    from cellkit.format_labels import refuse_picture
    from cellkit.stamps import refuse_changed

    for frame in frames:
        path = folder / f"{frame.image_id}.tif"
        refuse_picture(path)
        refuse_changed(path)


def write_overlay(path: Path, image: np.ndarray, found: Instances, classes: Sequence[str]) -> None:
    """Write an image with the outlines of its cells as PNG; small images are enlarged."""
    from cellkit.show_overlays import show_overlay
    from cellkit.show_style import bare_axes, save_figure

    height, width = image.shape[:2]
    ax = bare_axes(width / 100, height / 100)
    show_overlay(image, found, ax=ax, classes=classes, legend=False)
    larger = min(max(1, round(OVERLAY_PX / max(height, width))), MOST_LARGER)
    save_figure(ax, path, dpi=100 * larger)


def _assemble(out: Path, parts: Sequence[Path], info: Mapping[str, Any]) -> dict[str, int]:
    """Join the images' COCO files into one, numbered in order, atomically; return the number of cells per class."""
    images, categories, counts, number = [], {}, {}, 0
    dump = lambda value: json.dumps(value, allow_nan=False, ensure_ascii=False)  # noqa: E731
    with atomic_path(out) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(f'{{"info": {dump(info)}, "annotations": [')
        for position, part in enumerate(parts, 1):
            content = read_json(part)
            images.append({**content["images"][0], "id": position})
            categories |= {category["id"]: category for category in content["categories"]}
            for entry in content["annotations"]:
                file.write(", " if number else "")
                number += 1
                file.write(dump({**entry, "id": number, "image_id": position}))
                name = categories[entry["category_id"]]["name"]
                counts[name] = counts.get(name, 0) + 1
        ordered = [categories[key] for key in sorted(categories)]
        file.write(f'], "images": {dump(images)}, "categories": {dump(ordered)}}}\n')
    return {category["name"]: counts.get(category["name"], 0) for category in ordered}
