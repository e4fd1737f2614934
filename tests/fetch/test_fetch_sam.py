"""Fetching the weights of Cellpose 4: pinned, verified, converted; each kind of wrong file is refused in two lines."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest
import torch
from fetch_cases import QUICK, cyto3, listing, offline, server, weights_dir  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from sam_cases import SMALL, small_encoder

from cellkit.errors import UserError
from cellkit.fetch.fetch import fetch
from cellkit.fetch.find import find_weights
from cellkit.fetch.registry import REGISTRY
from cellkit.models.sam_dino import CellposeDINO, DinoShape
from cellkit.models.sam_network import load_network
from cellkit.models.weights import read_card

PATH = "/huggingface.co/mouseland/cellpose-sam/resolve/7c61431b5fbb078f3296754bd15d9f51b320f837/cpsam_v2"


@pytest.fixture
def published(tmp_path, monkeypatch) -> bytes:
    """What the cellpose package writes of its own network, small: views of larger tensors among it."""
    import cellpose.vit

    monkeypatch.setitem(cellpose.vit.sam_model_registry, "vit_l", small_encoder)
    torch.manual_seed(0)
    cellpose.vit.CPSAM().save_model(tmp_path / "published")
    return (tmp_path / "published").read_bytes()


@pytest.fixture
def known(monkeypatch):
    """Let the registry know a file as the bytes of a name; without any it is one whose sha256 nobody published."""

    def know(body: bytes | None = None, name: str = "cpsam_v2") -> None:
        (file,) = REGISTRY[name].files
        told = {"size_bytes": len(body), "sha256": sha256(body).hexdigest()} if body is not None else {}
        file = replace(file, **({"size_bytes": None, "sha256": ""} | told))
        monkeypatch.setitem(REGISTRY, name, replace(REGISTRY[name], files=(file,)))

    return know


def saved(what) -> bytes:
    body = BytesIO()
    torch.save(what, body)
    return body.getvalue()


def test_become_safetensors_with_a_card(server, weights_dir, published, known):
    known(published)
    server.put(PATH, published)
    (told,) = fetch("cpsam_v2", patience=QUICK)["files"]
    assert (told["state"], told["trust"]) == ("fetched", "published")
    assert listing(weights_dir) == ["cpsam_v2.json", "cpsam_v2.safetensors", "cpsam_v2.sha256.json"]
    card = read_card(find_weights("cpsam_v2"))
    assert card.backend == "cellpose_sam" and "CC BY-NC" in card.licence
    network, _ = load_network(find_weights("cpsam_v2"), "float32")
    assert network.shape == SMALL
    original = torch.load(BytesIO(published), weights_only=True)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in original.items())


def test_of_dino_too_which_lack_diameters(offline, weights_dir, tmp_path, known):
    tensors = CellposeDINO(DinoShape(width=32, depth=1, heads=2, mlp=64)).state_dict()
    body = saved({key: value for key, value in tensors.items() if not key.startswith("diam_")})
    known(body, "cpdino-vitb")
    (tmp_path / "cpdino-vitb").write_bytes(body)
    fetch("cpdino-vitb", given=[tmp_path / "cpdino-vitb"])
    network, _ = load_network(find_weights("cpdino-vitb"), "float32")
    assert network.shape.tile_px == 384 and network.diam_labels.item() == 30.0


def test_without_a_published_sha256_the_first_is_trusted_and_kept(server, weights_dir, published, known, capsys):
    known()
    server.put(PATH, published)
    (told,) = fetch("cpsam_v2", patience=QUICK)["files"]
    assert told["trust"] == "first download" and told["sha256"] == sha256(published).hexdigest()
    assert "no sha256 is published for it. This one is trusted, and kept in" in capsys.readouterr().err
    find_weights("cpsam_v2").unlink()
    server.put(PATH, saved({"other": torch.zeros(1)}))
    with pytest.raises(UserError, match="the first download had"):
        fetch("cpsam_v2", patience=QUICK)


def refused(server, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        fetch("cpsam_v2", patience=QUICK)
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(UserError, match="are not here"):
        find_weights("cpsam_v2")


def test_truncated(server, weights_dir, published, known):
    known(published)
    server.put(PATH, published[:-1000])
    refused(server, "bytes")


def test_tampered(server, weights_dir, published, known):
    known(published)
    server.put(PATH, published[:-1] + bytes([published[-1] ^ 1]))
    refused(server, "published is")


def test_tampered_afterwards(offline, weights_dir, published, known, tmp_path):
    known(published)
    fetch("cpsam_v2", given=[tmp_path / "published"])
    path = weights_dir / "cpsam_v2.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="are not here"):
        find_weights("cpsam_v2")


def test_of_another_architecture(server, weights_dir, cyto3, known):
    known(cyto3.read_bytes())
    server.put(PATH, cyto3.read_bytes())
    refused(server, "is a checkpoint of Cellpose 1 to 3.*kept as cpsam_v2.bad\nopen it with backend: cellpose_unet")
    assert listing(weights_dir) == ["cpsam_v2.bad"]


def test_the_reverse(offline, weights_dir, published, tmp_path):
    (tmp_path / "cyto3").write_bytes(published)
    with pytest.raises(UserError, match="is a Cellpose-SAM checkpoint.*\nopen it with backend: cellpose_sam"):
        fetch("cyto3", given=[tmp_path / "cyto3"])


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_with_a_program_in_it(server, weights_dir, tmp_path, known, how):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    body = pickle.dumps(Trap()) if how == "pickle" else saved({"W2": Trap()})
    known(body)
    server.put(PATH, body)
    refused(server, "no checkpoint that can be opened safely.*kept as cpsam_v2.bad")
    assert not (tmp_path / "sprung").exists()


def test_the_packages_downloader_is_never_asked(offline, weights_dir, monkeypatch):
    import cellpose.models
    import cellpose.utils

    monkeypatch.setattr(cellpose.models, "cache_model_path", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(cellpose.utils, "download_url_to_file", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match="run: cellkit fetch cpsam_v2"):
        find_weights("cpsam_v2")
    with pytest.raises(UserError, match="no checkpoint"):
        load_network("cpsam_v2")
