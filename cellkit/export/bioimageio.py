"""A package of bioimage.io: the U-Net in three formats of weights, with test tensors, for deepImageJ, ilastik, QuPath and others.

Specification 0.5 (bioimage-io/spec-bioimage-io). The package is checked by the publisher's own validator, which runs every
format of weights on the test tensors, before it takes its place.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellkit.export import plain_unet, texts
from cellkit.export.licences import licence_of, said_of
from cellkit.export.network import Exported
from cellkit.export.onnx_graph import OPSET, write_onnx
from cellkit.export.torch_files import write_torchscript
from cellkit.export.validator import check_package, require_validator
from cellkit.files import atomic_path, sha256_file, write_json, write_text
from cellkit.models.weights import ZOO

if TYPE_CHECKING:
    import numpy as np

FORMAT = "0.5.4"
DESCRIPTION, DOCUMENTATION, ARCHITECTURE, CARD = "rdf.yaml", "README.md", "cellpose_unet.py", "cellkit.json"
STATE, SCRIPT, GRAPH = "weights.pt", "weights_torchscript.pt", "weights.onnx"
SHOWN, FOUND = "test_planes.npy", "test_maps.npy"
LEAST_PX, STEP_PX, TEST_PX = 64, 8, (96, 128)
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # of every file, so that the ZIP depends on its content alone
CITE = [
    {
        "text": "Stringer, Wang, Michaelos, Pachitariu: Cellpose: a generalist algorithm for cellular segmentation. "
        "Nature Methods 18, 100-106 (2021)",
        "doi": "10.1038/s41592-020-01018-x",
    }
]
BOTH, EMPTY = ("cytoplasm", "nuclei"), "empty"
CHANNELS = {"both": BOTH, "cytoplasm": ("cytoplasm", EMPTY), "nuclei": (EMPTY, "nuclei")}


def write_package(model: Exported, out: str | Path, licence: str | None, authors: Sequence[str] = ()) -> list[str]:
    """Write a package, a ZIP; return what is to be said of it.

    Parameters
    ----------
    out : path
        Of the file.
    licence : str or None
        See `cellkit.export.licences.licence_of`; where there is none, the package names none.
    authors : sequence of str
        Names.

    Raises
    ------
    UserError
        The licence is not known, a package of the extra is missing, or the validator refuses.
    """
    import numpy as np
    import torch

    require_validator()
    card_licence = model.card.licence if model.card else ""
    spdx = licence_of(licence, card_licence)
    with tempfile.TemporaryDirectory(prefix="cellkit-export-") as made:
        folder = Path(made)
        shown = test_planes(model.used["channels"])
        about = texts.about(model)
        torch.save(model.network.state_dict(), folder / STATE)
        write_torchscript(model.network, folder / SCRIPT, about)
        write_onnx(model.network, folder / GRAPH, about)
        shutil.copyfile(plain_unet.__file__, folder / ARCHITECTURE)
        np.save(folder / SHOWN, shown)
        with torch.no_grad():
            np.save(folder / FOUND, model.network(torch.from_numpy(scaled(shown, model.used["normalise"]))).numpy())
        write_text(folder / DOCUMENTATION, texts.page(model, about, SCRIPT))
        write_json(folder / CARD, about, indent=1)
        write_text(folder / DESCRIPTION, _yaml(describe(model, folder, spdx, authors)))
        checked = check_package(folder / DESCRIPTION)
        with atomic_path(Path(out)) as temporary:
            _zip(folder, temporary)
    return [f"valid, and runs as it should, says {checked}", *said_of(spdx, card_licence)]


def describe(model: Exported, folder: Path, licence: str | None, authors: Sequence[str]) -> dict[str, Any]:
    """Return the description of a package whose other files lie in `folder`."""
    import torch

    def file(name: str, **more: Any) -> dict[str, Any]:
        return {"source": name, "sha256": sha256_file(folder / name), **more}

    built = file(ARCHITECTURE, callable="CellposeUNet", kwargs={"widths": list(model.network.widths)})
    version = torch.__version__.split("+")[0]
    trained = {"pytorch_version": version}
    zoo = next((parent.removeprefix(ZOO) for parent in model.parents if parent.startswith(ZOO)), None)
    title = re.sub(r"[^A-Za-z0-9_+ ()-]+", " ", model.title)
    return {
        "type": "model",
        "format_version": FORMAT,
        "name": f"Cellpose U-Net {title}"[:64],
        "description": "Two-channel Cellpose U-Net, adapted with cellkit: flows and cell probability of cells in 2D.",
        "authors": [{"name": name} for name in authors],
        "cite": CITE,
        **({"license": licence} if licence else {}),
        "tags": ["2d", "cellpose", "unet", "instance-segmentation", "cells", "nuclei", "pytorch"],
        "documentation": file(DOCUMENTATION),
        "attachments": [file(CARD)],
        **({"parent": {"id": zoo}} if zoo else {}),
        "inputs": [_input(model, file(SHOWN))],
        "outputs": [_output(file(FOUND))],
        "weights": {
            "pytorch_state_dict": file(STATE, architecture=built, **trained),
            "torchscript": file(SCRIPT, parent="pytorch_state_dict", **trained),
            "onnx": file(GRAPH, parent="pytorch_state_dict", opset_version=OPSET),
        },
        "config": {"cellkit": {**texts.about(model), "parents": model.parents}},
    }


def test_planes(channels: str) -> np.ndarray:
    """Return the raw channels of drawn cells 30 px wide, (1, 2, H, W) float32; one that is not shown is 0."""
    import numpy as np

    from cellkit.cells.drawn.camera import expose
    from cellkit.cells.drawn.field import draw_field
    from cellkit.cells.drawn.style import FieldStyle

    style = FieldStyle(size_px=TEST_PX, diameter_px=30.0)
    nuclei, cytoplasm = expose(draw_field(("HEK",), style, [0]), style, [0, 1])
    planes = np.stack([cytoplasm, nuclei]).astype(np.float32)
    planes *= np.array([name != EMPTY for name in CHANNELS[channels]], np.float32)[:, None, None]
    return planes[None]


def scaled(planes: np.ndarray, percentiles: Sequence[float]) -> np.ndarray:
    """Return planes (B, C, H, W) float32 with these percentiles of each channel at 0 and 1, as the description says."""
    import numpy as np

    low, high = np.percentile(planes, tuple(percentiles), axis=(2, 3), keepdims=True)
    return ((planes - low) / (high - low + 1e-6)).astype(np.float32)


def _input(model: Exported, test: dict[str, Any]) -> dict[str, Any]:
    low, high = model.used["normalise"]
    percentiles = {"axes": ["y", "x"], "min_percentile": low, "max_percentile": high}
    return {
        "id": "planes",
        "description": f"Cells {model.cell_px:g} px wide: {texts.SHOWN[model.used['channels']]}",
        "axes": [{"type": "batch"}, _channels(CHANNELS[model.used["channels"]]), *map(_side, "yx")],
        "data": {"type": "float32"},
        "preprocessing": [{"id": "scale_range", "kwargs": percentiles}],
        "test_tensor": test,
    }


def _output(test: dict[str, Any]) -> dict[str, Any]:
    same = [{"type": "space", "id": x, "size": {"tensor_id": "planes", "axis_id": x}, "halo": 16} for x in "yx"]
    return {
        "id": "maps",
        "description": "Flows (times 5) and the logit of the cell probability; the documentation says how they become masks",
        "axes": [{"type": "batch"}, _channels(("flow_y", "flow_x", "cell_probability")), *same],
        "data": {"type": "float32"},
        "test_tensor": test,
    }


def _channels(names: Sequence[str]) -> dict[str, Any]:
    return {"type": "channel", "channel_names": list(names)}


def _side(name: str) -> dict[str, Any]:
    return {"type": "space", "id": name, "size": {"min": LEAST_PX, "step": STEP_PX}}


def _yaml(value: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def _zip(folder: Path, out: Path) -> None:
    """Write the files of a folder as a ZIP: the same bytes for the same files."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            archive.writestr(zipfile.ZipInfo(path.name, LONG_AGO), path.read_bytes(), zipfile.ZIP_DEFLATED)
