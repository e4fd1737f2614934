"""cells.csv as AnnData, the table of spatial omics, with the keys by which SpatialData finds each cell in its label image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellkit.errors import UserError
from cellkit.formats.measured import read_cells_table
from cellkit.measure.dictionary import OF_CHANNEL, OF_NUCLEI_IN_CHANNEL

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

MEASURES = tuple(column.name.removesuffix("<channel>") for column in (*OF_NUCLEI_IN_CHANNEL, *OF_CHANNEL))
INSTALL = 'pip install "anndata>=0.11"'


def to_anndata(cells: pd.DataFrame | str | Path) -> AnnData:
    """Return the cells as AnnData: brightness as X, all else as obs, centroids as ``obsm["spatial"]``.

    Parameters
    ----------
    cells : DataFrame or path
        A table as `cellkit measure` writes it, or the CSV or Parquet file.

    Returns
    -------
    AnnData
        ``X`` (N, M) float64: what was measured of each channel; ``var`` says of which ``channel`` and what (``measure``).
        ``obs``: all other columns, with ``region`` (the image, which is what its label image is called in a SpatialData) and
        ``instance_id`` (the number of the cell in it), named in ``uns["spatialdata_attrs"]``. ``obsm["spatial"]`` (N, 2):
        centroids x, y in px, the centre of the first pixel at 0.

    Raises
    ------
    UserError
        anndata is not installed, no such file, a table of other columns, or a cell that is there twice.
    """
    try:
        from anndata import AnnData
    except ImportError as error:
        raise UserError("anndata is not installed", INSTALL) from error
    import pandas as pd

    table = _read(Path(cells)) if isinstance(cells, (str, Path)) else cells
    wanted = ("image", "label", "centroid_x_px", "centroid_y_px")
    missing = [name for name in wanted if name not in table]
    if missing:
        raise UserError(f"the table lacks the column {missing[0]}", "give the table that cellkit measure writes")
    strange = table["label"].isna() | table["image"].isna()
    if strange.any():
        raise UserError(
            f"row {int(strange.to_numpy().argmax()) + 1} of the table says of no image or cell",
            "measure the cells again",
        )
    measured = {name: parts for name in map(str, table.columns) if (parts := _parts(name))}
    obs = table[[name for name in table.columns if str(name) not in measured]].copy()
    for name in obs.columns[[kind.kind not in "biuf" for kind in obs.dtypes]]:
        obs[name] = _categories(obs[name])
    obs["region"] = _categories(table["image"])
    obs["instance_id"] = table["label"].to_numpy(np.int64)
    names = [f"{image}/{label}" for image, label in zip(obs["region"], obs["instance_id"], strict=True)]
    obs.index = pd.Index(names, dtype=object)
    if obs.index.has_duplicates:
        raise UserError(f"the table has two rows of {obs.index[obs.index.duplicated()][0]}", "measure the cells once")
    var = pd.DataFrame(list(measured.values()), pd.Index(list(measured), dtype=object), ["measure", "channel"], object)
    found = AnnData(table[list(measured)].to_numpy(np.float64), obs=obs, var=var)
    found.obsm["spatial"] = table[["centroid_x_px", "centroid_y_px"]].to_numpy(np.float64)
    keys = {"region_key": "region", "instance_key": "instance_id"}
    found.uns["spatialdata_attrs"] = {"region": list(obs["region"].cat.categories), **keys}
    return found


def _categories(texts: pd.Series) -> pd.Categorical:
    """Return texts as AnnData stores them: by category, of Python's own strings."""
    import pandas as pd

    values = ["" if pd.isna(value) else str(value) for value in texts]
    return pd.Categorical(np.array(values, object), pd.Index(sorted(set(values)), dtype=object))


def _parts(name: str) -> tuple[str, str] | None:
    """Return what was measured of which channel; None for a column of no channel.

    Examples
    --------
    >>> _parts("mean_corrected_DAPI"), _parts("mean_DAPI"), _parts("area_px")
    (('mean_corrected', 'DAPI'), ('mean', 'DAPI'), None)
    """
    starts = [begin for begin in MEASURES if name.startswith(begin) and len(name) > len(begin)]
    longest = max(starts, key=len, default="")
    return (longest.rstrip("_"), name[len(longest) :]) if longest else None


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"no table at {path}", "measure the cells first: cellkit measure")
    try:
        return read_cells_table(path)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"{path} cannot be read: {str(error).strip()[:80]}", "measure the cells again") from error
