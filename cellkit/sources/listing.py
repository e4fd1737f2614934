"""One image of a source before it is opened: which files there are, which belong together, which class, which split.

What every layout shares. A layout lists what a folder holds and makes a `SourceImage` of each picture; `assign_splits` then
refuses two images of one name, keeps at most ``convert.max_images``, and splits. Nothing is opened before
`SourceImage.load` is called.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cellkit.cells.instances import IGNORE, IGNORED, Instances
from cellkit.cells.names import plain, stem_of
from cellkit.cells.records import MIXED, ImageRecord
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError, collected, nearest, of_place, raise_or_collect
from cellkit.log import collected_warnings
from cellkit.microscope.convert import Conversion, Converted, Level, convert_frame
from cellkit.microscope.file_info import Opened, headers_only
from cellkit.microscope.light import Limits

LEFT = "left/"  # begins the id of what fits no image


FEW = 8  # images of one class in one split; one that cannot be used leaves no split of more empty


UNUSED = "unused"  # the source's own split leaves the image out


Convert = Callable[..., "Loaded"]  # (opened, conversion, scene=0, time=0) -> one frame as a picture without truth


# ---- one image of a source -----------------------------------------------------------------------------------------
class Loaded(NamedTuple):
    """Pixels and truth of one image, before resizing.

    image : (H, W, 3) uint8; instances : Instances or None (no truth); um_per_px : float, nan unknown;
    channels : str, as in ImageRecord; levels : how each channel was scaled; planes : what became of the z planes;
    composed : put together from parts whose light differs, so that uneven light says nothing; left_out : what lies in the
    file and becomes no picture; turned : EXIF orientation by which the pixels were turned, 1 where they were not.
    """

    image: np.ndarray
    instances: Instances | None
    um_per_px: float = math.nan
    channels: str = ""
    levels: tuple[Level, ...] = ()
    planes: str = ""
    composed: bool = False
    left_out: tuple[str, ...] = ()
    turned: int = 1


@dataclass(frozen=True)
class SourceImage:
    """What is known of an image before it is opened; fields as in `ImageRecord`.

    `split` is "" where the source has none of its own, and "unused" where its own split leaves the image out. `loader` is
    picklable, so that worker processes can load. `own_id` is what the source itself calls the image, and a competition
    expects: the file's name without its suffix; "" where there is no such name. `files` are those of the data folder
    that the image is made of, picture first: what no image is made of is named, see `cellkit.sources.leftovers`. `unit` names the
    file, or the series of files, that it is one of several frames of: they stay on one side of a split. `bare` is an image
    of which no labels are known. `is_own_test`: the source itself, no draw, calls it a test image. `scene` and `time` say which
    frame of its file it is. `is_pseudo`: a model proposed its labels.
    """

    image_id: str
    cell_type: str
    group: str
    split: str
    source: str
    loader: Callable[..., Loaded]
    own_id: str = ""
    files: tuple[Path, ...] = ()
    unit: str = ""
    bare: bool = False
    is_own_test: bool = False
    scene: int = 0
    time: int = 0
    is_pseudo: bool = False

    @property
    def is_left(self) -> bool:
        """Whether it stands for something that fits no image, and is there to be skipped with its reason."""
        return self.image_id.startswith(LEFT)

    @property
    def is_refused(self) -> bool:
        """Whether it is known before it is opened that it cannot be used."""
        return isinstance(self.loader, partial) and self.loader.func is _fail

    def load(self, convert: Convert | None = None) -> Loaded:
        """Read, convert and return the image and its truth; raises what is wrong with it.

        Objects of the class "ignore" are regions that are not annotated; an image of which nothing is annotated has no truth.

        Parameters
        ----------
        convert : callable, optional
            Makes the picture; see `converted`, the default.
        """
        made = self.loader(convert=convert or converted)
        cells = None if made.instances is None else made.instances.without_ignored()
        if cells is not None and not len(cells) and cells.unknown_px == math.prod(cells.shape):
            cells = None
        return made._replace(instances=cells)


def is_usable(item: SourceImage) -> bool:
    """Tell whether the headers of an image's files, and its labels, are in order; why not is said when its turn comes."""
    with headers_only(), collected() as noted, collected_warnings():
        try:
            item.load()
        except Exception as error:  # whatever a reader raises on a damaged file
            if of_place(error):
                raise
            return False
    return not noted


def useless_alone(items: Sequence[SourceImage], drawn: Sequence[ImageRecord]) -> set[str]:
    """Return the images that cannot be used and are alone of their class in their split, or with others that cannot."""
    of_split: dict[tuple[str, str], list[SourceImage]] = defaultdict(list)
    for item, record in zip(items, drawn, strict=True):
        of_split[item.cell_type, record.split].append(item)
    few = [found for found in of_split.values() if len(found) <= FEW]
    return {item.image_id for found in few if not any(map(is_usable, found)) for item in found}


def failing(problem: str, remedy: str = "") -> Callable[..., Loaded]:
    """Return a loader that raises, for what is wrong before an image is opened: it is said when its turn comes."""
    return partial(_fail, problem, remedy)


def _fail(problem: str, remedy: str = "", convert: Convert | None = None) -> Loaded:
    """Stand in for an image that cannot be used: the reason appears where the others are loaded.

    Raises
    ------
    UserError
        Always.
    """
    raise UserError(problem, remedy)


def loader_of_several(root: Path, *found: Sequence[Path]) -> Callable[[], Loaded] | None:
    """Return what refuses an image whose picture or truth is several files of one name; None where each is one at most."""
    paths = next((paths for paths in found if len(paths) > 1), ())
    names = " and ".join(path.relative_to(root).as_posix() for path in paths[:2])
    problem = f"{len(paths)} files are called {stem_of(paths[0])}: {names}" if paths else ""
    return failing(problem, "keep one of them") if paths else None


# ---- classes -------------------------------------------------------------------------------------------------------
def named_class(folder: str, config: ConvertConfig) -> str:
    """Return the class a folder is called after, "mixed", or "" when it is called otherwise."""
    names = {plain(name): name for name in (*config.classes, MIXED)}
    return names.get(plain(_renamed(folder, config) or ""), "")


def _renamed(label: str, config: ConvertConfig) -> str | None:
    """Return what ``convert.class_names`` makes of a label, spelled in any way; the label itself where it is not there."""
    if label in config.class_names:
        return config.class_names[label]
    return {plain(known): name for known, name in config.class_names.items()}.get(plain(label), label)


def cell_type_of(folders: Iterable[str], config: ConvertConfig) -> str:
    """Return the class of the innermost folder that is called after one; else the only class there is; else ""."""
    named = [named_class(folder, config) for folder in folders]
    return next((name for name in reversed(named) if name), only_class(config))


def only_class(config: ConvertConfig) -> str:
    """Return the class where there is one class only, else ""."""
    return config.classes[0] if len(config.classes) == 1 else ""


def class_id_of(label: str, config: ConvertConfig) -> int:
    """Return the class id of a label of the source: by class_names, else by name.

    It is 0 where class_names says null, and `IGNORED` for "ignore": a region that nobody annotated.

    Raises
    ------
    UserError
        The label is no class, and class_names does not name it.
    """
    name = _renamed(label, config)
    if name is None:
        return 0
    ids = {plain(known): number for number, known in enumerate(config.classes, 1)} | {IGNORE: IGNORED}
    if plain(name) not in ids:
        raise unknown_class(label, config, f"the source's label '{label}'")
    return ids[plain(name)]


def known_class(label: str, config: ConvertConfig) -> int:
    """Return what `class_id_of` does: where a layout is listed, a label that is no class is noted with the others of its kind.

    Raises
    ------
    UserError
        As `class_id_of`, outside `collected`.
    """
    try:
        return class_id_of(label, config)
    except UserError as error:
        raise_or_collect(error)
        return 0


def class_of_line(label: str, config: ConvertConfig) -> str:
    """Return the class that a whole image of the source's `label` has; "" where class_names says null."""
    number = known_class(label, config)
    return config.classes[number - 1] if number > 0 else ""


def unknown_class(label: str, config: ConvertConfig, what: str) -> UserError:
    """Return the error of a label that is no class and that the config does not name."""
    return UserError(
        f"{what} is none of the classes ({', '.join(config.classes)}){nearest(label, config.classes)}",
        f"name it in convert.class_names, e.g. {label}: {config.classes[0]} (or null: cells of no known class; "
        "ignore: a region that nobody annotated)",
    )


# ---- pictures and label images -------------------------------------------------------------------------------------
def converted(
    opened: Opened, conversion: Conversion, scene: int = 0, time: int = 0, limits: Limits | None = None
) -> Loaded:
    """Return one frame of an opened file as an 8-bit picture without truth, at full size; `limits` are those of a batch."""
    return _loaded(convert_frame(opened, scene, time, replace(conversion, scale=1.0, limits=limits)))


def _loaded(made: Converted) -> Loaded:
    return Loaded(
        made.image, None, made.um_per_px, made.channels, made.levels, made.planes, False, made.left_out, made.turned
    )
