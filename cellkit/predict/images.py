"""Which images: files and their frames, each read as the model's training images were."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellkit.cells.names import check_ids, image_id_of, plain, stem_of
from cellkit.errors import Quarantined, UserError, counted, plain_reason
from cellkit.files import write_table
from cellkit.log import LOG
from cellkit.manifest import MANIFEST
from cellkit.microscope.batch import convert_batch
from cellkit.microscope.channel_files import warn_of_seeming_channels
from cellkit.microscope.convert import Conversion, convert_frame
from cellkit.microscope.file_info import PICTURE_SUFFIXES
from cellkit.microscope.folders import IMAGE_SUFFIXES, LABEL_FOLDERS, NOT_IMAGES, is_run_folder, list_files, odd_zarrs
from cellkit.microscope.open import (
    READ_SUFFIXES,
    inspect_file,
    is_image_folder,
    is_zarr_by_another_name,
    open_file,
    why_unread,
)
from cellkit.predict.model import AS_IT_IS


# ---- which images --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Frame:
    """One picture to be: a scene and time of a file, its id, and the file's path relative to the folder given.

    `notes` and `left_out` are what the header says of it, see `FileInfo`; unknown before a PNG or JPEG
    is opened.
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
                unread_files.append(Quarantined(str(path), plain_reason(str(unread))))
                continue
            real = Path(os.path.realpath(path))  # a loop of links stays as it is, and is skipped
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
        raise UserError(f"of {counted(len(unread_files), 'image')} none is read: {problem}", remedy)
    warn_of_seeming_channels([path for path, _ in listed])
    if not listed:
        raise UserError(f"no image in {', '.join(map(str, named))}", "give files, folders or patterns of images")
    return listed


def _called_as_labels(
    named: Iterable[str | Path], images: Sequence[Path], avoided: Sequence[Path]
) -> list[Quarantined]:
    """Return the files of the folders that are called as label images are (double_label.tif), and after none of the images."""
    stems = {plain(stem_of(path)) for path in images}
    alone = []
    for root in (Path(name) for name in named if Path(name).is_dir()):
        for path in list_files(root, IMAGE_SUFFIXES, keep_labels=True):
            stem, folders = plain(stem_of(path)), path.relative_to(root).parts[:-1]
            ends = [k for k, sign in enumerate(stem) if sign in " _.-"]
            in_labels = any(plain(folder) in LABEL_FOLDERS for folder in folders)
            ours = in_labels or any(Path(os.path.realpath(path)).is_relative_to(folder) for folder in avoided)
            if stem.endswith(NOT_IMAGES) and not ours and not any(stem[:end] in stems for end in ends):
                problem = "is called as a label image is, and after no image here; to use it, give the file itself"
                alone.append(Quarantined(str(path), problem))
    return alone


def _images_of(name: str) -> tuple[Path, list[tuple[Path, str]]]:
    """Return the folder that one argument looks into, and the images it names, each with its path relative to that."""
    path = Path(name)
    if path.is_dir() and not is_image_folder(path) and not is_zarr_by_another_name(path):
        files = list_files(path, IMAGE_SUFFIXES) + odd_zarrs(path)
        runs = [
            listed.parent.name
            for listed in path.rglob(MANIFEST)
            if listed.parent != path and is_run_folder(listed.parent)
        ]
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
    """Return every scene and time of the files, with ids that are unique; files whose header cannot be read are skipped.

    Ids come from the path below the folder given; where two folders were given and hold files of one name, from the path
    below the folder that holds both.

    Raises
    ------
    UserError
        Two images still have one id.
    """
    listed = _with_ids_apart(listed)
    frames: list[Frame] = []
    quarantined: list[Quarantined] = []
    for path, relative in listed:
        try:
            frames += _frames_of(path, relative)
        except Exception as error:  # whatever a reader raises on a damaged file
            quarantined.append(Quarantined(str(path), reason_of(error)))
    check_ids((frame.image_id, f"{frame.path}{frame.suffix}") for frame in frames)
    return frames, quarantined


def _with_ids_apart(listed: Sequence[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Return (path, relative path), the latter below the folder that holds all, where two images would have one id."""
    try:
        check_ids((_id_of(relative), str(path)) for path, relative in listed)
    except UserError:
        common = Path(os.path.commonpath([path.absolute().parent for path, _ in listed]))
        return [(path, path.absolute().relative_to(common).as_posix()) for path, _ in listed]
    return list(listed)


def _id_of(relative: str, suffix: str = "") -> str:
    """Return the image id of a relative path; folders called ``images`` do not count, as in `cellkit.sources.ingest`."""
    *folders, name = relative.split("/")
    return image_id_of("/".join([*(folder for folder in folders if folder.lower() != "images"), name]), suffix)


def _frames_of(path: Path, relative: str) -> list[Frame]:
    if path.suffix.lower() in PICTURE_SUFFIXES:  # one frame; opened when its turn comes
        return [Frame(path, relative, _id_of(relative))]
    info = inspect_file(path)
    return [
        Frame(path, relative, _id_of(relative, suffix), scene, time, suffix, info.notes_of(scene), info.left_out)
        for scene, time, suffix in info.frames()
    ]


def reason_of(error: Exception) -> str:
    """Return what went wrong with an image in one line; the kind of error, where it was not foreseen."""
    text = plain_reason(str(error)) or type(error).__name__
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
            grey = bool(shown.image.any()) and bool((shown.image == shown.image[..., :1]).all())
            if not grey:
                return Picture(shown.image, size, shown.channels, um_per_px, notes=opened.info.notes_of(frame.scene))
        if conversion is None or not conversion.names_channels:
            raise _unnamed_channels(frame, series, grey)
        shown = convert_frame(opened, frame.scene, frame.time, conversion)
        notes = tuple(dict.fromkeys(level.note for level in shown.levels if level.note))
        return Picture(shown.image, size, shown.channels, um_per_px, conversion.scale, notes)


def _unnamed_channels(frame: Frame, series, grey: bool) -> UserError:
    """Say which channels a file has, and that neither nuclei nor cytoplasm was named."""
    names = [f"{k} {channel.name or 'unnamed'}" for k, channel in enumerate(series.channels)]
    what = "the same grey in red, green and blue" if grey else f"{counted(len(names), 'channel')}: {', '.join(names)}"
    first = "0" if grey else series.channels[0].name or "0"
    return UserError(
        f"{frame.path.name} has {what}; neither nuclei nor cytoplasm is named",
        f"say which channel is which: --nuclei C and / or --cytoplasm C, e.g. --nuclei {first}",
    )


def convert_files(
    images: Sequence[str | Path], out: str | Path, conversion: Conversion, workers: int = 1
) -> tuple[list[Path], list[Quarantined]]:
    """Write every scene and time of the files as ``out/<image_id>.png``, and ``out/conversion.csv``: what was done.

    Repeated, it skips the files that are done, see `cellkit.microscope.batch.convert_batch`.

    Returns
    -------
    written : list of Path
    quarantined : list of Quarantined

    Raises
    ------
    UserError
        No image, or none that could be converted, or a folder that holds the images themselves, or cannot be written.
    """
    out = Path(out)
    links: list[Quarantined] = []
    listed = _with_ids_apart(find_images(images, avoid=[out], outside=links))
    frames = [Frame(path, text, _id_of(text)) for path, text in listed]
    refuse_inputs_as_outputs(frames, [out])
    if not conversion.names_channels:
        with open_file(frames[0].path, conversion.axes) as opened:
            raise _unnamed_channels(frames[0], opened.info.series[0], False)
    named = [(frame.path, frame.image_id) for frame in frames]
    done = convert_batch(named, out, conversion, workers)
    if not done.rows:
        raise none_used(len(named), done.quarantined)
    write_table(out / "conversion.csv", done.rows)
    return done.written, links + done.quarantined


def none_used(images: int, quarantined: Sequence[Quarantined]) -> UserError:
    """Say that nothing is left, and why the first image was skipped."""
    first = quarantined[0]
    problem, _, remedy = first.reason.rpartition("; ")
    named = "" if Path(first.item).name in first.reason else f"{first.item}: "
    return UserError(
        f"of {counted(max(images, len(quarantined)), 'image')} none could be used; {named}{problem or remedy}",
        remedy if problem else "`cellkit inspect FILE` tells what a file holds",
    )


def refuse_inputs_as_outputs(frames: Sequence[Frame], places: Sequence[Path]) -> None:
    """Refuse to write over the images: an output folder that holds some, or an output file that is one.

    Raises
    ------
    UserError
        Naming the place.
    """
    files = {Path(os.path.realpath(frame.path)) for frame in frames}
    folders = {path.parent for path in files}
    for place in places:
        if place.resolve() in folders | files:
            raise UserError(f"results would be written over the images in '{place}'", "name another place for them")
