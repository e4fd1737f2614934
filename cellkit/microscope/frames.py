"""Which images: the files that are named, and every scene and time in them, each under an id of its own."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellkit.cells.names import check_ids, image_id_of, plain, stem_of
from cellkit.errors import Quarantined, UserError, counted, plain_reason
from cellkit.log import LOG
from cellkit.manifest import MANIFEST
from cellkit.microscope.channel_files import warn_of_seeming_channels
from cellkit.microscope.file_info import MAX_PLANE_PX, PICTURE_SUFFIXES
from cellkit.microscope.folders import IMAGE_SUFFIXES, LABEL_FOLDERS, NOT_IMAGES, is_run_folder, list_files, odd_zarrs
from cellkit.microscope.open import READ_SUFFIXES, inspect_file, is_image_folder, is_zarr_by_another_name, why_unread
from cellkit.microscope.overlay_mark import mark_of


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
    drawn: list[Path] = []
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
            if path != Path(name) and mark_of(path) is not None:  # of a pattern; folders are listed without them
                drawn.append(path)
                continue
            real = Path(os.path.realpath(path))  # a loop of links stays as it is, and is skipped
            if Path(name) == root and path != root and not real.is_relative_to(root.resolve()):
                links.append(
                    Quarantined(str(path), f"is a link that leads out of {root}; copy the file there, or name it")
                )
            elif not any(real.is_relative_to(folder) for folder in below):
                found.setdefault(real, (path, relative))
    if drawn:
        LOG.warning(f"{counted(len(drawn), 'picture')} with outlines that cellkit drew left out, e.g. {drawn[0]}")
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


def find_frames(
    listed: Sequence[tuple[Path, str]], axes: str | None = None, most_px: int = MAX_PLANE_PX
) -> tuple[list[Frame], list[Quarantined]]:
    """Return every scene and time of the files, with ids that are unique; files whose header cannot be read are skipped.

    Ids come from the path below the folder given; where two folders were given and hold files of one name, from the path
    below the folder that holds both.

    Parameters
    ----------
    listed : sequence of (path, relative path)
    axes : str, optional
        Of files that do not state them, e.g. "TYX".
    most_px : int
        Most pixels a plane may have.

    Raises
    ------
    UserError
        Two images still have one id.
    """
    listed = with_ids_apart(listed)
    frames: list[Frame] = []
    quarantined: list[Quarantined] = []
    for path, relative in listed:
        try:
            frames += _frames_of(path, relative, axes, most_px)
        except Exception as error:  # whatever a reader raises on a damaged file
            quarantined.append(Quarantined(str(path), reason_of(error)))
    check_ids((frame.image_id, f"{frame.path}{frame.suffix}") for frame in frames)
    return frames, quarantined


def with_ids_apart(listed: Sequence[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Return (path, relative path), the latter below the folder that holds all, where two images would have one id."""
    try:
        check_ids((id_of(relative), str(path)) for path, relative in listed)
    except UserError:
        common = Path(os.path.commonpath([path.absolute().parent for path, _ in listed]))
        return [(path, path.absolute().relative_to(common).as_posix()) for path, _ in listed]
    return list(listed)


def id_of(relative: str, suffix: str = "") -> str:
    """Return the image id of a relative path; folders called ``images`` do not count, as in `cellkit.sources.ingest`."""
    *folders, name = relative.split("/")
    return image_id_of("/".join([*(folder for folder in folders if folder.lower() != "images"), name]), suffix)


def _frames_of(path: Path, relative: str, axes: str | None, most_px: int) -> list[Frame]:
    if path.suffix.lower() in PICTURE_SUFFIXES:  # one frame; opened when its turn comes
        return [Frame(path, relative, id_of(relative))]
    info = inspect_file(path, axes, most_px)
    return [
        Frame(path, relative, id_of(relative, suffix), scene, time, suffix, info.notes_of(scene), info.left_out)
        for scene, time, suffix in info.frames()
    ]


def reason_of(error: Exception) -> str:
    """Return what went wrong with an image in one line; the kind of error, where it was not foreseen."""
    text = plain_reason(str(error)) or type(error).__name__
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


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
