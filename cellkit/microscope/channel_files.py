"""One file per channel: which files are the channels of one image, and opening them as one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cellkit.cells.names import EACH, channel_of, channel_rule, plain, stem_of
from cellkit.errors import UserError, raise_or_collect
from cellkit.log import LOG
from cellkit.microscope.file_info import Channel, FileInfo, Opened
from cellkit.microscope.open import open_file

REMEDY = (
    "set convert.channel_from to an expression that finds the channel in a name, such as _(?P<channel>C[0-9]+)-?[A-Za-z0-9]*, "
    f"to join them, and channels.nuclei to what it finds; or convert.channel_from: {EACH}, and each file is an image"
)


@dataclass(frozen=True)
class ChannelFiles:
    """The files of one image: `path` is what the image is called after, `files` are (channel, path), sorted by channel."""

    path: Path
    files: tuple[tuple[str, Path], ...]


def seeming_channels(
    paths: Sequence[Path], rule: re.Pattern | None = None
) -> dict[tuple[Path, str], list[tuple[str, Path]]]:
    """Return the files that differ in their channel only, by (folder, common name): (channel, path), sorted.

    Parameters
    ----------
    paths : sequence of Path
    rule : pattern, optional
        See `cellkit.cells.names.channel_of`; without it, names as microscopes and Fiji give them, of two files or more.
    """
    found: dict[tuple[Path, str], list[tuple[str, Path]]] = defaultdict(list)
    for path in paths:
        own = channel_of(stem_of(path), rule)
        if own:
            found[path.parent, own[0]].append((own[1], path))
    least = 1 if rule else 2
    return {key: sorted(some) for key, some in found.items() if len({plain(name) for name, _ in some}) >= least}


def _what_seems(paths: Sequence[Path]) -> str:
    found = seeming_channels(paths)
    names = [path.name for _, path in next(iter(found.values()), ())]
    return f"{' and '.join(names[:4])} seem to be the channels of one image ({len(found)} such sets)" if found else ""


def refuse_seeming_channels(paths: Sequence[Path]) -> None:
    """Refuse files that seem to be the channels of one image: taken one by one each would be an image of one channel.

    Raises
    ------
    UserError
        With the names of the first such set.
    """
    if problem := _what_seems(paths):
        raise_or_collect(UserError(problem, REMEDY))


def warn_of_seeming_channels(paths: Sequence[Path]) -> None:
    """Say in the log what `refuse_seeming_channels` refuses."""
    if problem := _what_seems(paths):
        LOG.warning(
            f"{problem}: each file is taken for an image of its own; join them with convert.channel_from in a run, or store "
            "them as one file"
        )


def join_channels(paths: Sequence[Path], pattern: str | None) -> list[Path | ChannelFiles]:
    """Return the files, those of one image joined as ``convert.channel_from`` says, in the order of their names.

    Raises
    ------
    UserError
        Without an expression: files that seem to be channels of one image. With one: it fits no file, or one channel twice.
    """
    if pattern is None:
        refuse_seeming_channels(paths)
        return list(paths)
    rule = channel_rule(pattern)
    if rule is None:
        return list(paths)
    joined = []
    for (folder, name), files in seeming_channels(paths, rule).items():
        channels = [plain(channel) for channel, _ in files]
        twice = next((path for (_, path), one in zip(files, channels, strict=True) if channels.count(one) > 1), None)
        if twice is not None:
            problem = (
                f"convert.channel_from {pattern!r} finds one channel twice in the files of '{name}', e.g. {twice.name}"
            )
            remedy = "let it fit all that differs between the channels, and nothing that differs between images"
            raise_or_collect(UserError(problem, remedy))
        joined.append(ChannelFiles(folder / f"{name or 'image'}{files[0][1].suffix}", tuple(files)))
    if paths and not joined:
        problem = f"convert.channel_from {pattern!r} fits no file, e.g. not {paths[0].name}"
        raise_or_collect(UserError(problem, "correct it, or set it to null"))
    parts = {path for one in joined for _, path in one.files}
    return sorted([*joined, *(path for path in paths if path not in parts)], key=lambda one: getattr(one, "path", one))


@contextmanager
def open_image(image: Path | ChannelFiles, axes: str | None, most_px: int) -> Iterator[Opened]:
    """Open a file, or the channels of one image as one file.

    Raises
    ------
    UserError
        As `cellkit.microscope.open.open_file`; or a file of several channels, or files of different sizes.
    """
    if isinstance(image, Path):
        with open_file(image, axes, most_px) as opened:
            yield opened
        return
    with ExitStack() as stack:
        parts = [stack.enter_context(open_file(path, axes, most_px)) for _, path in image.files]
        first = parts[0].info
        for part in parts:
            sizes = [[[s.size(axis) for axis in "TZYX"] for s in info.series] for info in (first, part.info)]
            if [s.turned for s in part.info.series] != [s.turned for s in first.series]:
                raise UserError(
                    f"{first.path.name} and {part.info.path.name}, channels of one image, differ in their EXIF orientation",
                    "export the channels again",
                )
            if any(len(s.channels) > 1 for s in part.info.series):
                raise UserError(
                    f"{part.info.path.name} has {len(part.info.first.channels)} channels, and one file per channel is meant",
                    "store each channel as grey, or take the file out",
                )
            if sizes[0] != sizes[1]:
                raise UserError(
                    f"{first.path.name} and {part.info.path.name}, channels of one image, differ in size: "
                    f"{first.shape} and {part.info.shape}",
                    "export the channels again",
                )
        channels = tuple(
            Channel(name, part.info.first.channels[0].wavelength_nm)
            for (name, _), part in zip(image.files, parts, strict=True)
        )
        series = tuple(replace(s, channels=channels) for s in first.series)
        notes = tuple(
            f"{part.info.path.name}: {note}"
            for part in parts
            for note in dict.fromkeys(
                note for scene in range(len(part.info.series)) for note in part.info.notes_of(scene)
            )
        )
        left_out = tuple(text for part in parts for text in part.info.left_out)
        info = FileInfo(image.path, first.reader, tuple(replace(s, notes=()) for s in series), notes, left_out)
        yield Opened(
            info,
            lambda scene, time, z, channel: parts[channel].plane(scene, time, z, 0),
            None
            if any(part.window is None for part in parts)
            else lambda scene, time, z, channel, *window: parts[channel].window(scene, time, z, 0, *window),
        )
