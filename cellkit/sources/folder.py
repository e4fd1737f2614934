"""Any folder of pictures or microscope files, with the label images that lie beside or below it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cellkit.cells.names import split_of_folder
from cellkit.cells.records import MIXED
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError, counted
from cellkit.formats.any import Reading, read_cells
from cellkit.log import LOG
from cellkit.microscope.channel_files import ChannelFiles, join_channels
from cellkit.microscope.file_info import only_headers
from cellkit.microscope.folders import IMAGE_SUFFIXES, check_inside, list_files
from cellkit.microscope.open import why_unread
from cellkit.sources.assign_splits import assign_splits
from cellkit.sources.label_files import LabelFiles, classes_drawn
from cellkit.sources.leftovers import leftovers
from cellkit.sources.listing import (
    LEFT,
    UNUSED,
    Convert,
    Loaded,
    SourceImage,
    class_id_of,
    failing,
    named_class,
)
from cellkit.sources.loading import (
    check_same_way,
    check_shape,
    files_of,
    frames_of,
    noted,
    perhaps,
    proposals_are_no_truth,
)
from cellkit.sources.own_split import with_own_split
from cellkit.sources.source_tables import ClassTable, _key_of
from cellkit.sources.unlabelled import apart_from_bare, has_own_split

ORDER = 1000


def detect(root: Path) -> bool:
    """Any folder is one, where no other data set is recognised."""
    return root.is_dir()


def classes(root: Path) -> set[str]:
    """Return the classes that the files of cells below a folder name."""
    return classes_drawn(root)


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """Any folder of pictures or microscope files, with label images where they are found by name.

    A label image is ``a_masks.tif`` or ``.png`` beside ``a.png`` (also _cp_masks, _labels, _label, _mask, _seg.npy, and
    QuPath's ``a.geojson``), or lies under ``labels/`` or ``masks/`` in place of ``images/`` (``<root>/images/x/a.png``,
    ``<root>/labels/x/a.tif``), or below ``<root>/labels/`` at the same relative path. Folders that words of their names call
    labels (``train_masks`` beside ``train_images``, ``labelsTr``, ``seg``, ``01_GT/SEG``) hold no pictures, see
    `cellkit.sources.label_files`. A stack of labels has a plane for each frame of its file. Folders called train, val and test
    are the split, else lists (``train.txt``, ...) or a table with a column ``split`` in the data folder; a folder called after a
    class is the cell type, and mixed images are test images; other folders are the group.

    With ``config.pair`` = [img, mask] the images are the files with "img" in their name, and ``img2d.tif`` has its labels
    in ``mask2d.tif``.
    """
    yield from read_pictures(Path(root), config)


def read_pictures(root: Path, config: ConvertConfig, folders_are_classes: bool = False) -> Iterator[SourceImage]:
    """List the pictures of a folder with their label images, and what is left: what the layouts above share.

    Raises
    ------
    UserError
        ``convert.pair`` fits no picture.
    """
    pair = config.pair
    labels = LabelFiles(root)
    table = ClassTable(root, config)
    found = list_files(root, IMAGE_SUFFIXES, keep_labels=pair is not None, is_class=partial(named_class, config=config))
    paths = [path for path in found if not why_unread(path)]
    if pair is not None:
        paths = [path for path in paths if is_image_of_pair(path.name, pair)]
        if not paths:
            raise UserError(
                f"no picture below {root} has '{pair[0]}' in its name (convert.pair: [{', '.join(pair)}])",
                "name what pictures have there, or take convert.pair out",
            )
    labels.find_folders(paths, config)
    if pair is None:
        paths = [path for path in paths if path.relative_to(root).parent not in labels.folders]
    items: list[SourceImage] = []
    for image in join_channels(paths, config.channel_from) if pair is None else paths:
        path = image.path if isinstance(image, ChannelFiles) else image
        label_of = partial(labels.of_image, image) if pair is None else partial(labels.of_pair, path, pair)
        table.keys |= dict.fromkeys(files_of(image), _key_of(path.relative_to(root).as_posix()))
        for item in frames_of(image, root, config, label_of, table.rows_of):
            items.append(_with_cells(item, labels.cells_of, root, path, config))
    items, lists = with_own_split(items, root, config)
    also_used = labels.used | table.files | set(lists)
    left = [*table.unmatched(items), *leftovers(root, items, also_used, labels.looked_for(items))]
    if folders_are_classes:
        left += odd_folders([item for item in items if table.key(item) not in table.matched.values()], items, config)
    _refuse_doubtful_splits(items, config)
    items, bare = apart_from_bare(items, config)
    left += bare
    fill = has_own_split([item for item in items if item.cell_type != MIXED], config)
    yield from assign_splits(items, config, mixed_is_test=True, fill_split=fill, left=left)


def is_image_of_pair(name: str, pair: tuple[str, str]) -> bool:
    """Tell whether a file is a picture of ``convert.pair``, where one text may be part of the other.

    Examples
    --------
    >>> [is_image_of_pair(name, ("_img", "_img_mask")) for name in ("0_img.png", "0_img_mask.png", "0.png")]
    [True, False, False]
    """
    image, label = pair
    return image in (name.replace(label, "") if image in label else name)


def _refuse_doubtful_splits(items: Sequence[SourceImage], config: ConvertConfig) -> None:
    """Refuse folders called after a class that is also the name of a split, where other folders are splits."""
    doubtful = sorted(
        {
            part
            for item in items
            for part in item.source.split("/")[:-1]
            if split_of_folder(part) and named_class(part, config)
        }
    )
    if doubtful and any(item.split for item in items):
        raise UserError(
            f"the folder {doubtful[0]} is called after a class and after a split, and other folders are splits",
            f"rename it, e.g. to {doubtful[0]}_cells with convert.class_names: {{{doubtful[0]}_cells: {doubtful[0]}}}",
        )


def _with_cells(item: SourceImage, cells_of: Callable, root: Path, path: Path, config: ConvertConfig) -> SourceImage:
    """Return an image with the file that holds its cells with class, where there is one."""
    try:
        file = cells_of(path, item.image_id.removeprefix(item.unit) if item.unit else "")
    except UserError as error:
        return replace(item, loader=failing(error.problem, error.remedy), bare=False)
    if file is None:
        return item
    loader = partial(_load_cells, item.loader, root, path, file, item.cell_type, config)
    return replace(item, loader=loader, files=(*item.files, file), bare=False)


def _load_cells(
    load: Callable[..., Loaded],
    root: Path,
    path: Path,
    file: Path,
    cell_type: str,
    config: ConvertConfig,
    convert: Convert,
) -> Loaded:
    """Load an image and the cells of its ``_seg.npy`` or GeoJSON; refuse masks beside it that say otherwise."""
    made = load(convert=convert)
    check_inside(file, root)
    if only_headers():  # which cells of which classes only the whole file tells
        return perhaps(made, range(len(config.classes) + 1))
    found = read_cells(file, Reading(classes=config.classes), made.image.shape[:2])
    if found.made_by == "proposed":
        raise proposals_are_no_truth(file.name)
    check_same_way(made, path, file)
    check_shape(found.cells.shape, made.image.shape[:2], file, path)
    if made.instances is not None and (found.cells.paint(unknown=-1) != made.instances.paint(unknown=-1)).any():
        raise UserError(
            f"{path.name} has masks beside it that differ from {file.name}",
            "keep what you corrected last, remove the other",
        )
    own = class_id_of(cell_type, config) if cell_type not in ("", MIXED) else 0
    number = [own, *(class_id_of(name, config) for name in found.classes)]
    left = tuple(f"{file.name}: {one.reason.removeprefix(f'{file}: ')}" for one in found.quarantined)
    cells = found.cells.with_scores(1).with_classes([number[k] for k in found.cells.class_ids])
    return noted(made._replace(instances=cells, left_out=(*made.left_out, *left)), found.notes)


def odd_folders(
    by_folder: Sequence[SourceImage], items: Sequence[SourceImage], config: ConvertConfig
) -> Iterator[SourceImage]:
    """Name folders that are called after no class while some class has no image; say it where that does no harm.

    `by_folder` are the images of `items` whose cells have their class of nothing else.
    """
    if not items:
        return
    if len(config.classes) == 1:
        _warn_odd_folders_of_one_class(by_folder, config)
        return
    classless = Counter(item.source.rpartition("/")[0] for item in by_folder if not item.cell_type)
    missing = [name for name in config.classes if not any(item.cell_type == name for item in items)]
    without = f"; no image is in a folder called after {', '.join(missing)}" if missing else ""
    for folder, count in sorted(classless.items()):
        problem = f"is called after none of the classes ({', '.join(config.classes)}): "
        problem += f"the class of its {counted(count, 'image')} is unknown"
        if missing:
            loader = failing(problem + without, "rename the folder, or name it in convert.class_names")
            yield SourceImage(f"{LEFT}{folder}/", "", "", UNUSED, f"{folder or 'the data folder'}/", loader)
        else:
            LOG.warning(f"{folder or '.'}/ {problem}")
    if missing and not classless:
        only = ", ".join(missing)
        LOG.warning(f"class {only} has no folder, and so no image that is known to be of it")


def _warn_odd_folders_of_one_class(items: Sequence[SourceImage], config: ConvertConfig) -> None:
    """Say which folders are called otherwise than the only class, where one is called so: their cells count as it too."""
    count = Counter(item.source.rpartition("/")[0] for item in items)
    own = {folder for folder in count if any(named_class(part, config) for part in folder.split("/"))}
    for folder in sorted(set(count) - own) if own else ():
        problem = f"{folder or '.'}/ is called after none of the classes; with one class its cells count as {config.classes[0]}"
        LOG.warning(
            f"{problem}: {counted(count[folder], 'image')}; add its class to classes, or take the folder out, "
            "where that is not meant"
        )
