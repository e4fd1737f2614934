"""One frame of a file as the picture a model is shown, read as the training images were; and files converted to pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellkit.cells.records import ImageRecord
from cellkit.errors import Quarantined, UserError, counted
from cellkit.files import write_table
from cellkit.microscope.batch import convert_batch
from cellkit.microscope.convert import Conversion, convert_frame
from cellkit.microscope.file_info import LARGEST_PLANE_PX, MAX_PLANE_PX, PICTURE_SUFFIXES
from cellkit.microscope.frames import Frame, find_images, id_of, none_used, refuse_inputs_as_outputs, with_ids_apart
from cellkit.microscope.open import open_file
from cellkit.predict.model import AS_IT_IS


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
    frame: Frame, conversion: Conversion | None, ask: Callable[[tuple[int, int], float, bool], None] | None = None
) -> Picture:
    """Read one frame as the picture a model is shown.

    A PNG or JPEG in colours of 8 bits is used as it is: nuclei blue, cytoplasm green, as notebook 01 writes them. All
    else, also a grey picture that is stored as equal colours, is converted.

    Parameters
    ----------
    ask : callable, optional
        Called with the size of the picture to be, in px, its scale, and whether it can be read window by window, before its
        pixels are read; may refuse it.

    Raises
    ------
    UserError
        A file that cannot be read, or one that must be converted while no channel is named.
    """
    most_px = MAX_PLANE_PX if ask is None else LARGEST_PLANE_PX
    with open_file(frame.path, conversion.axes if conversion else None, most_px) as opened:
        series = opened.info.series[frame.scene]
        size, um_per_px = (series.size("Y"), series.size("X")), series.um_per_px
        colours = frame.path.suffix.lower() in PICTURE_SUFFIXES and series.axes == "YXS" and series.dtype == "uint8"
        grey = False
        as_it_is = colours and not (conversion and conversion.always and not conversion.made_already(frame.path))
        if ask is not None:
            scale = 1.0 if as_it_is or conversion is None else conversion.scale
            named = conversion is not None and conversion.names_channels and not as_it_is
            shape = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
            ask(shape, scale, named and opened.window is not None)
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


class UnnamedChannels(UserError):
    """A file that has to be converted, while no channel is named."""


def record_of(frame: Frame, picture: Picture) -> ImageRecord:
    """Return the record of an image, in the px of its file."""
    return ImageRecord(
        image_id=frame.image_id,
        path=frame.relative,
        height_px=picture.file_shape[0],
        width_px=picture.file_shape[1],
        channels=picture.channels,
        um_per_px=picture.um_per_px,
        source=source_of(frame),
        file=frame.relative,
        scene=frame.scene,
        time=frame.time,
    )


def source_of(frame: Frame) -> str:
    """Return the source of an image in its record: the file, with scene and time where it has several."""
    return f"{frame.relative}{frame.suffix.replace('_s', ' scene ').replace('_t', ' t ')}"


def _unnamed_channels(frame: Frame, series, grey: bool) -> UnnamedChannels:
    """Say which channels a file has, and that neither nuclei nor cytoplasm was named."""
    names = [f"{k} {channel.name or 'unnamed'}" for k, channel in enumerate(series.channels)]
    what = "the same grey in red, green and blue" if grey else f"{counted(len(names), 'channel')}: {', '.join(names)}"
    first = "0" if grey else series.channels[0].name or "0"
    return UnnamedChannels(
        f"{frame.path.name} has {what}; neither nuclei nor cytoplasm is named",
        f"say which channel is which: --nuclei C and / or --cytoplasm C, e.g. --nuclei {first}",
    )


def convert_files(
    images: Sequence[str | Path],
    out: str | Path,
    conversion: Conversion,
    workers: int = 1,
    before: Callable[[list[Frame], int], None] | None = None,
) -> tuple[list[Path], list[Quarantined]]:
    """Write every scene and time of the files as ``out/<image_id>.png``, and ``out/conversion.csv``: what was done.

    Repeated, it skips the files that are done, see `cellkit.microscope.batch.convert_batch`.

    Parameters
    ----------
    before : callable, optional
        Called with the files, and how many of them seem to be done, before anything is written; may refuse.

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
    listed = with_ids_apart(find_images(images, avoid=[out], outside=links))
    frames = [Frame(path, text, id_of(text)) for path, text in listed]
    refuse_inputs_as_outputs(frames, [out])
    if not conversion.names_channels:
        with open_file(frames[0].path, conversion.axes) as opened:
            raise _unnamed_channels(frames[0], opened.info.series[0], False)
    if before is not None:
        before(frames, sum((out / f"{frame.image_id}.png").is_file() for frame in frames))
    named = [(frame.path, frame.image_id) for frame in frames]
    done = convert_batch(named, out, conversion, workers)
    if not done.rows:
        raise none_used(len(named), done.quarantined)
    write_table(out / "conversion.csv", done.rows)
    return done.written, links + done.quarantined
