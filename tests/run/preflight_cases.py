"""Small data sets with one fault each, for the tests of the look ahead."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellkit.config.reading import load_config
from cellkit.formats.label_images import write_labels
from cellkit.run.preflight import check_file
from cellkit.run.preflight_data import ERROR, WARNING
from cellkit.sources.ingest import convert_images

SIZE = 32

CONFIG = """
data: s
classes: [HEK, N2a]
convert: {source: microscope, channels: {nuclei: DAPI, cytoplasm: GFP}}
"""


def stack(path: Path, size: int = SIZE, names=("DAPI", "GFP"), seed: int = 0) -> None:
    """Write a field of two round cells, as OME-TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    light = np.random.default_rng(seed).normal(300, 30, (len(names), size, size))
    light[:, 4:12, 4:12] += 2000
    light[:, 18:28, 16:26] += 2500
    metadata = {"axes": "CYX", "Channel": {"Name": list(names)}}
    tifffile.imwrite(path, light.astype(np.uint16), ome=True, photometric="minisblack", metadata=metadata)


def labels(path: Path, size: int = SIZE) -> None:
    cells = np.zeros((size, size), np.uint16)
    cells[4:12, 4:12], cells[18:28, 16:26] = 1, 2
    write_labels(path, cells)


def mask(path: Path, value: int = 255, pieces: int = 2) -> None:
    """Write where cells are, all with one value."""
    cells = np.zeros((SIZE, SIZE), np.uint8)
    for k in range(pieces):
        cells[9 * k + 1 : 9 * k + 7, 4:12] = value
    tifffile.imwrite(path, cells)


def lab(count: int = 4, root: Path = Path("s"), lines=("HEK", "N2a"), truth: bool = True) -> None:
    for number, (line, k) in enumerate((line, k) for line in lines for k in range(count)):
        stack(root / line / f"{line}{k}.ome.tif", seed=number)
        if truth:
            labels(root / "truth" / line / f"{line}{k}.tif")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with a configuration of two lines; the data are for the test to draw."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELLKIT_RUNNER", raising=False)
    monkeypatch.setenv("CELLKIT_WEIGHTS", str(tmp_path / "weights"))
    Path("c.yaml").write_text(CONFIG)
    return tmp_path


def look(**overrides):
    """Look ahead with dotted keys, ``_`` written as ``__`` standing for the dot."""
    return check_file("c.yaml", {key.replace("__", "."): value for key, value in overrides.items()})


def texts(outlook, severity: str) -> str:
    return "\n".join(f"{one.problem} -> {one.remedy}" for one in outlook.findings if one.severity == severity)


def refused(**overrides) -> str:
    return texts(look(**overrides), ERROR)


def warned(**overrides) -> str:
    """Return the warnings; there must be no error."""
    outlook = look(**overrides)
    assert outlook.errors() == []
    return texts(outlook, WARNING)


def converted(**overrides):
    """Do what notebook 01 does first."""
    cfg = load_config("c.yaml", {key.replace("__", "."): value for key, value in overrides.items()})
    return convert_images(cfg.convert, "s", "run", cfg)
