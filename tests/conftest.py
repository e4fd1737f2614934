"""What several test files share: drawn images as a data set, and the folder of real data."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch: several processes share the processors, one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import cellkit  # noqa: E402, F401  before torch: how its threads wait
from cellkit.log import show_log  # noqa: E402
from cellkit.run.runner import import_jsonschema  # noqa: E402

show_log("stderr")  # so that a test can read what a person would
import_jsonschema()  # as a run does, before a test imports nbformat

# The same examples in every run, so that a red one can be repeated; HYPOTHESIS_PROFILE=explore draws new ones.
# No deadline: the first call imports, and a busy machine is no fault.
settings.register_profile("repeat", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))

REPO = Path(__file__).parent.parent


# The files that take longest, the longest first. A file stays on one process: those that begin late keep it waiting at the end.
LONGEST = (
    "test_notebooks",
    "test_sam_notebooks",
    "test_cellpose_sam",
    "test_processes",
    "test_detector_processes",
    "test_fuzz",
    "test_round_trips",
    "test_bioimageio",
    "test_report",
    "test_cellpose3",
    "test_run_processes",
    "test_contract",
    "test_presentation",
    "test_quality",
    "test_recipes",
    "test_kills",
    "test_backends",
    "test_run_refusals",
    "test_networks",
    "test_folds",
    "test_stale",
    "test_detector_start",
)


def pytest_collection_modifyitems(items: list) -> None:
    """Begin with the files that take longest, so that no process is left alone with one at the end; skip what needs real data."""
    if not real_data().is_dir():
        for item in items:
            if item.get_closest_marker("realdata"):
                item.add_marker(pytest.mark.skip(reason="no real data: set CELLKIT_DATA"))
    place = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(autouse=True)
def same_folder():
    """Begin every test in the folder where the tests were started, whatever the one before did."""
    before = Path.cwd()
    yield
    os.chdir(before)


def real_data() -> Path:
    """The folder of real data: CELLKIT_DATA, or ../shared/data beside the checkout."""
    return Path(os.environ.get("CELLKIT_DATA") or REPO.parent / "shared" / "data")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data; skips where there is none."""
    if not real_data().is_dir():
        pytest.skip("no real data: set CELLKIT_DATA")
    return real_data()


def eight_bit(plane: np.ndarray) -> np.ndarray:
    low, high = np.percentile(plane, (0.3, 99.8))
    return (np.clip((plane - low) / max(high - low, 1), 0, 1) * 255).round().astype(np.uint8)


def encode_png(image: np.ndarray, um_per_px: float = math.nan) -> bytes:
    from cellkit.microscope.journal import png_parts

    return b"".join(png_parts(image, um_per_px))


def write_png(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(image))
    return path


def convert_file(path: Path, conversion) -> list:
    """Return the pictures of all scenes and times of a file."""
    from cellkit.microscope.convert import convert_frame
    from cellkit.microscope.open import open_file

    with open_file(path, conversion.axes, conversion.most_px) as opened:
        return [convert_frame(opened, scene, time, conversion, suffix) for scene, time, suffix in opened.info.frames()]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Six drawn images of two lines, (128, 128, 3) uint8, with truth and classes: three train, two val, one test."""
    from cellkit.cells.dataset import CellDataset
    from cellkit.cells.drawn.camera import expose
    from cellkit.cells.drawn.field import draw_field
    from cellkit.cells.drawn.style import FieldStyle
    from cellkit.cells.instances import Instances
    from cellkit.cells.records import ImageRecord

    root = tmp_path_factory.mktemp("drawn")
    records, instances = [], []
    style = FieldStyle(size_px=(128, 128), diameter_px=30.0)
    for k, split in enumerate(("train", "train", "train", "val", "val", "test")):
        line = ("HEK", "N2a")[k % 2]
        field = draw_field((line,), style, [7, k])
        nuclei, cytoplasm = (eight_bit(plane) for plane in expose(field, style, [7, k, 1]))
        write_png(root / f"images/{k}.png", np.stack([np.zeros_like(nuclei), cytoplasm, nuclei], axis=-1))
        found = Instances.from_labels(field.labels)
        instances.append(found[found.areas_px >= 15].with_classes(k % 2 + 1))
        records.append(ImageRecord(str(k), f"images/{k}.png", 128, 128, cell_type=line, split=split))
    return CellDataset(records, instances, ("HEK", "N2a"), root, list(range(1, 7)))


@pytest.fixture(scope="session")
def narrow_start(tmp_path_factory):
    """Weights of a U-Net of a few channels, as random as they are: trained in a second."""
    from cellkit.models import cellpose_unet as unet
    from cellkit.models import weights
    from cellkit.models.unet_network import load_start

    network = load_start("scratch", 3, (4, 8, 12, 16))
    card = {**unet.DEFAULTS, "diameter_px": 30.0, **network.config}
    path = tmp_path_factory.mktemp("start") / "narrow.safetensors"
    return weights.save_checkpoint(path, network.state_dict(), unet.NAME, config=card)


@pytest.fixture
def said(capfd):
    """Call the command line; return (exit code, stdout, stderr)."""
    from cellkit.commands.main import main

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call
