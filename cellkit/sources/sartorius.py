"""Sartorius' cell instance segmentation set (Kaggle 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fastcore.basics import groupby

from cellkit.cells.instances import Instances
from cellkit.cells.names import image_id_of, stem_of
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError, counted
from cellkit.microscope.folders import IMAGE_SUFFIXES, by_stem, list_files
from cellkit.sources.assign_splits import assign_splits
from cellkit.sources.leftovers import leftovers
from cellkit.sources.listing import (
    Convert,
    Loaded,
    SourceImage,
    class_id_of,
    class_of_line,
    failing,
    loader_of_several,
)
from cellkit.sources.loading import check_same_way, load_picture
from cellkit.sources.source_tables import header_of, read_table
from cellkit.sources.unlabelled import apart_from_bare

ORDER = 10


def detect(root: Path) -> bool:
    """Tell whether a folder is such a data set."""
    return {"id", "annotation", "cell_type"} <= set(header_of(root / "train.csv"))


def read(root: Path, config: ConvertConfig) -> Iterator[SourceImage]:
    """Kaggle's Sartorius set: ``train/ID.png`` and ``train.csv`` with one row (id, annotation, cell_type) per cell.

    Run lengths are 1-based and row-major. Cells overlap in the truth, and stay so. The plate and well (``sample_id``) is the
    group where the table has that column: then set ``convert.split_by: group``. Pictures of ``test/`` are test images
    without truth: predicted and handed in.
    """
    root = Path(root)
    rows = read_table(root / "train.csv", ("id", "annotation", "width", "height", "cell_type"), root)
    rows_of = groupby(rows, lambda row: row["id"])
    pictures = by_stem(root / "train", IMAGE_SUFFIXES)
    items = [
        _sartorius_image(root, name, rows_of.get(name), pictures.get(name, []), config)
        for name in sorted({*rows_of, *pictures})
    ]
    for path in list_files(root / "test", IMAGE_SUFFIXES, keep_labels=True):
        name, source = stem_of(path), path.relative_to(root).as_posix()
        loader = partial(load_picture, root, path, config)
        about = {"files": (path,), "bare": True}
        items.append(SourceImage(image_id_of(f"{name}.png"), "", "", "test", source, loader, name, **about))
    left = list(leftovers(root, items))
    items, bare = apart_from_bare(items, config)
    yield from assign_splits(items, config, left=[*left, *bare])


def classes(root: Path) -> set[str]:
    """Return the cell types that ``train.csv`` names."""
    return {row["cell_type"] for row in read_table(Path(root) / "train.csv", ("cell_type",), Path(root))}


def _sartorius_image(
    root: Path, name: str, rows: list[dict] | None, found: list[Path], config: ConvertConfig
) -> SourceImage:
    path = next(iter(found), None)
    about = {(row["cell_type"], row.get("sample_id", ""), row["height"], row["width"]) for row in rows or ()}
    line, group, *size = min(about) if about else ("", "", "", "")
    cell_type = class_of_line(line, config) if line else ""
    if path is None:
        problem = f"{name} has {counted(len(rows), 'cell')} in train.csv, no picture train/{name}.png"
        loader = failing(problem, "add the picture")
    elif len(about) > 1:
        problem = f"the rows of {name} in train.csv differ in cell type, sample or size"
        loader = failing(problem, "correct the table")
    else:
        runs = [row["annotation"] for row in rows] if rows else None
        loader = partial(_load_sartorius, root, path, runs, tuple(size), cell_type, config)
    loader = loader_of_several(root, found) or loader
    source = path.relative_to(root).as_posix() if path else f"train/{name}.png"
    files = tuple(found)
    bare = path is not None and rows is None
    return SourceImage(image_id_of(f"{name}.png"), cell_type, group, "", source, loader, name, files=files, bare=bare)


def _load_sartorius(
    root,
    path,
    runs: list[str] | None,
    size: tuple[str, str],
    cell_type: str,
    config: ConvertConfig,
    convert: Convert,
) -> Loaded:
    made = load_picture(root, path, config, convert)
    if runs is None:
        return made
    shape = made.image.shape[:2]
    if size != (str(shape[0]), str(shape[1])):
        raise UserError(
            f"train.csv says {path.stem} is {size[0]} x {size[1]} px, {path.name} is {shape[0]} x {shape[1]}",
            "use the picture the cells were outlined on",
        )
    check_same_way(made, path, Path("train.csv"))
    class_id = class_id_of(cell_type, config) if cell_type else 0
    cells = Instances.from_kaggle_rle(runs, shape, "row-major")
    if (cells.areas_px == 0).any():
        raise UserError(f"{path.stem} has a cell without a pixel in train.csv", "remove the row")
    return made._replace(instances=cells.with_classes(class_id))
