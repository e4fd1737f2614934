"""PNG and JPEG: grey or colours, 8 or 16 bit, turned as their EXIF orientation says; whatever hides a pixel is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from cellkit.errors import UserError
from cellkit.microscope.file_info import (
    COLOURS,
    MAX_PLANE_PX,
    ORIENTATION,
    PICTURE_SUFFIXES,
    Channel,
    FileInfo,
    Opened,
    Reader,
    Series,
    check_opaque,
    check_size,
    damaged,
    turned_upright,
)

ORDER = -1  # named after TIFF
PICTURE_MODES = {"1": (1, "bool"), "L": (1, "uint8"), "LA": (1, "uint8"), "I;16": (1, "uint16"), "I;16B": (1, "uint16"),
                 "I": (1, "int32"), "F": (1, "float32"), "RGB": (3, "uint8"), "RGBA": (3, "uint8"),
                 "P": (3, "uint8")}  # fmt: skip


@contextmanager
def open_picture(
    path: Path, axes: str | None = None, most_px: int = MAX_PLANE_PX, content: bytes | None = None
) -> Iterator[Opened]:
    """Open a PNG or JPEG: grey or colours, with or without alpha, palette (as its colours), 8 or 16 bit.

    A file is turned as its EXIF orientation says, as labelme, browsers, Pillow and OpenCV show it; a picture that lies in
    another file and has such an orientation is refused.

    Parameters
    ----------
    path : Path
        The file, or what messages call the picture when `content` is given.
    axes : str, optional
        Not used: a picture says what its axes are.
    most_px : int
        Most pixels it may have.
    content : bytes, optional
        The encoded picture, when it does not lie in a file of its own.

    Raises
    ------
    UserError
        A damaged file, several frames, unknown colours, transparent pixels, or an orientation of a picture inside
        another file.
    """
    from PIL import Image

    embedded = content is not None
    content = path.read_bytes() if content is None else content
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(content), formats=["PNG", "JPEG"])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path.name}: {error}", "store an image this large as TIFF") from error
    except Exception as error:
        raise damaged(path, "PNG or JPEG", error) from error
    with picture:
        frames = getattr(picture, "n_frames", 1)
        smaller = frames > 1 and _others_are_smaller(path, picture)
        if picture.mode not in PICTURE_MODES or (frames > 1 and not smaller):
            what = f"a {picture.mode} picture" + (f" of {frames} frames" if frames > 1 else "")
            raise UserError(f"{path.name} is {what}", "store it as grey, RGB or RGBA with one frame")
        check_size(path, picture.height, picture.width, most_px)
        turned = orientation_of(path, picture, content)
        if turned > 1 and embedded:
            raise UserError(
                f"the picture in {path.name} has the EXIF orientation {turned}: nobody knows which way it was outlined",
                "turn its pixels, then outline it again",
            )
        height, width = (picture.height, picture.width) if turned < 5 else (picture.width, picture.height)
        count, dtype = PICTURE_MODES[picture.mode]
        deep = _is_deep_colour_png(content)
        series = Series(
            name="",
            axes="YXS" if count == 3 else "YX",
            shape=(height, width, 3)[: 2 + (count == 3)],
            dtype="uint16" if deep else dtype,
            channels=tuple(map(Channel, COLOURS)) if count == 3 else (Channel("grey"),),
            notes=(
                *([f"turned as its EXIF orientation {turned} says"] if turned > 1 else []),
                *([f"the first of the {frames} pictures in it: the others are smaller, as previews are"] * smaller),
            ),
            turned=turned,
        )
        pixels = _PictureRead(path, picture, content if deep else None, turned)
        yield Opened(
            FileInfo(path, picture.format.lower(), (series,)),
            lambda scene, time, z, channel: pixels.samples[..., channel],
        )


def _others_are_smaller(path: Path, picture) -> bool:
    """Tell whether a JPEG of several (MPO) is a camera's: the picture, then previews of it or maps of its brightness."""
    if picture.format != "MPO":
        return False
    sizes = []
    try:
        for number in range(picture.n_frames):
            picture.seek(number)
            sizes.append(picture.size)
        picture.seek(0)
    except Exception as error:
        raise damaged(path, "JPEG of several pictures", error) from error
    return all(width < sizes[0][0] and height < sizes[0][1] for width, height in sizes[1:])


PNG_START = b"\x89PNG"


def orientation_of(path: Path, picture: Any, content: bytes) -> int:
    """Return the EXIF orientation of an opened PNG or JPEG, 1 to 8; refuse one that only XMP tells.

    Raises
    ------
    UserError
        Damaged EXIF, or an orientation that only XMP states.
    """
    from PIL import Image

    exif = Image.Exif()
    try:
        if content[:4] == PNG_START and b"eXIf" in content and "exif" not in picture.info:
            picture.load()  # it may follow the pixels
        exif.load(picture.info.get("exif") or b"")
        orientation = exif.get(ORIENTATION, 1)
        everywhere = Image.Image.getexif(picture).get(ORIENTATION, 1)  # also of XMP
    except Exception as error:
        raise damaged(path, "a picture with EXIF", error) from error
    if orientation == 1 and everywhere in range(2, 9):
        raise UserError(
            f"{path.name} has the orientation {everywhere} in its XMP and none in its EXIF: programs show it differently",
            "turn its pixels and store it again",
        )
    return orientation if orientation in range(2, 9) else 1


def _is_deep_colour_png(content: bytes) -> bool:
    """Tell whether a PNG has 16-bit colours or 16-bit grey with alpha, which Pillow would cut to 8 bits."""
    return content[:4] == PNG_START and content[24:25] == b"\x10" and content[25] in (2, 4, 6)


@dataclass
class _PictureRead:
    path: Path
    picture: object
    deep: bytes | None
    turned: int = 1

    @cached_property
    def samples(self) -> np.ndarray:
        """(H, W, C): the colours without alpha, which must be opaque; turned as the orientation says."""
        try:
            if self.deep is not None:
                import imagecodecs

                pixels = imagecodecs.png_decode(self.deep)
            else:
                pixels = np.asarray(self.picture.convert("RGBA") if self.picture.mode == "P" else self.picture)
        except Exception as error:
            raise damaged(self.path, "a picture", error) from error
        pixels = turned_upright(pixels.astype(pixels.dtype.newbyteorder("="), copy=False), self.turned)
        clear = self.picture.info.get("transparency")
        if clear is not None and self.picture.mode != "P" and self.deep is None:
            check_opaque(self.path, self._opaque_but(pixels, clear))
        if pixels.ndim == 2:
            return pixels[..., None]
        if pixels.shape[2] in (2, 4):
            check_opaque(self.path, pixels[..., -1])
            pixels = pixels[..., :-1]
        return pixels

    def _opaque_but(self, pixels: np.ndarray, clear) -> np.ndarray:
        """(H, W) uint8 alpha where one value, or colour, is declared transparent."""
        if self.picture.mode in ("1", "L", "RGB"):
            return turned_upright(np.asarray(self.picture.convert("RGBA"))[..., 3], self.turned)
        return np.where(pixels == clear, 0, 255).astype(np.uint8)


READER = Reader("picture", "PNG or JPEG", PICTURE_SUFFIXES, open_picture)
