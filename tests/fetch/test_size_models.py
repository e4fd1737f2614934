"""Size models come along with the weights they are for, where they can be had, and lie beside them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from cellkit.errors import UserError
from cellkit.fetch.fetch import fetch, fetched_weights, list_entries
from cellkit.fetch.find import find_weights
from cellkit.fetch.registry import REGISTRY
from cellkit.models.size_model import read_size_model, size_model_beside
from cellkit.models.unet_network import CellposeUNet

CELLPOSE = "https://www.cellpose.org/models"


@pytest.fixture
def carried(tmp_path, monkeypatch):
    """A narrow checkpoint and a size model as Cellpose calls them, carried here by hand."""
    monkeypatch.setenv("CELLKIT_WEIGHTS", str(tmp_path / "weights"))
    folder = tmp_path / "carried"
    folder.mkdir()
    torch.save(CellposeUNet(widths=(4, 8, 12, 16)).state_dict(), folder / "cyto2torch_0")
    plain = {"A": np.ones(256), "smean": np.zeros(256, np.float32), "ymean": np.float32(0.1), "diam_mean": 30.0}
    np.save(folder / "size_cyto2torch_0.npy", plain)
    return folder


def test_it_lies_beside_the_weights(carried):
    done = fetch("cyto2", given=[carried])
    path = find_weights("cyto2")
    assert [file["state"] for file in done["files"]] == ["by hand", "by hand"]
    assert size_model_beside(path) == path.with_name("cyto2_size.npy")
    assert read_size_model(size_model_beside(path)).mean_log == pytest.approx(0.1)
    assert [file["state"] for file in fetch("cyto2", given=[carried])["files"]] == ["there", "there"]


def test_the_weights_are_whole_without_it_and_it_may_come_later(carried):
    done = fetch("cyto2", given=[carried / "cyto2torch_0"])
    assert len(done["files"]) == 1 and size_model_beside(fetched_weights("cyto2")) is None
    assert next(row for row in list_entries() if row["name"] == "cyto2")["here"]
    assert len(fetch("cyto2", given=[carried / "size_cyto2torch_0.npy"])["files"]) == 2
    assert size_model_beside(fetched_weights("cyto2")) is not None


def test_one_that_is_none_is_left_out_and_said(carried, capsys):
    (carried / "size_cyto2torch_0.npy").write_bytes(b"<html>sign in</html>")
    fetch("cyto2", given=[carried])
    assert size_model_beside(find_weights("cyto2")) is None
    told = capsys.readouterr().err
    assert "cyto2: without size_cyto2torch_0.npy, which is of use and not needed: " in told and "kept as" in told


def test_alone_it_is_no_weights(carried):
    with pytest.raises(UserError, match="0 file|1 not yet") as caught:
        fetch("cyto2", given=[carried / "size_cyto2torch_0.npy"])
    assert f"{CELLPOSE}/cyto2torch_0" in str(caught.value)


def test_names_and_addresses_are_those_of_cellpose_3():
    import cellpose3

    if why := cellpose3.missing():
        pytest.skip(why)
    source = (cellpose3.FOLDER / "cellpose/models.py").read_text(encoding="utf-8")
    assert re.search(r'^_MODEL_URL = "([^"]+)"', source, re.MULTILINE)[1] == CELLPOSE
    names = re.findall(r'"(\w+)"', re.search(r"^MODEL_NAMES = \[(.*?)\]", source, re.MULTILINE | re.DOTALL)[1])
    ours = [entry for entry in REGISTRY.values() if entry.backend == "cellpose_unet"]
    assert len(ours) == 6 and {entry.name for entry in ours} <= set(names)
    for entry in ours:
        old = entry.name in ("cyto", "cyto2", "nuclei")
        assert entry.files[0].file_name == (f"{entry.name}torch_0" if old else entry.name)
        sized = [file.file_name for file in entry.files[1:]]
        assert sized == ([f"size_{entry.files[0].file_name}.npy"] if old or entry.name == "cyto3" else [])
