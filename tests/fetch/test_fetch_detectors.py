"""Detectors to start from: fetched from a server on 127.0.0.1, converted, or refused; and what "coco" means to which backend."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fetch_cases import QUICK, listing, offline, server, weights_dir  # noqa: F401

from cellkit.config.reading import load_config
from cellkit.errors import UserError
from cellkit.fetch.fetch import fetch
from cellkit.fetch.find import find_weights, named_for, with_weights
from cellkit.fetch.registry import REGISTRY
from cellkit.models.detectron2_zoo import read_zoo
from cellkit.models.weights import card_for, load_tensors, read_card

NAME = "detectron2_mask_rcnn_r50_fpn_3x"
ADDRESS = REGISTRY[NAME].files[0].url.replace("https:/", "")


def arrays() -> dict[str, np.ndarray]:
    """A few of the arrays of a detector with a ResNet-50, with random numbers."""
    rng = np.random.default_rng(0)
    shapes = {
        "backbone.bottom_up.stem.conv1.weight": (64, 3, 7, 7),
        "backbone.bottom_up.stem.conv1.norm.running_mean": (64,),
        "proposal_generator.rpn_head.objectness_logits.bias": (3,),
        "roi_heads.mask_head.predictor.weight": (80, 4, 1, 1),
    }
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"proposal_generator.anchor_generator.cell_anchors.0": np.zeros((3, 4), np.float32)}


def zoo(model=None, protocol: int = 4) -> bytes:
    """A file of detectron2's model zoo."""
    return pickle.dumps({"model": arrays() if model is None else model, "__author__": "Detectron2"}, protocol)


@pytest.mark.parametrize("protocol", [2, 4])
def test_detectron2s_pickle_becomes_safetensors_with_a_card(server, weights_dir, protocol, capsys):  # noqa: F811
    body = zoo(protocol=protocol)
    server.put(ADDRESS, body)
    found = fetch(NAME, patience=QUICK)
    (file,) = found["files"]
    assert (file["sha256"], file["trust"]) == (sha256(body).hexdigest(), "first download")
    assert "no sha256 is published for it. This one is trusted" in capsys.readouterr().err
    path = find_weights(NAME)
    assert listing(weights_dir) == [f"{NAME}.json", f"{NAME}.safetensors", "model_final_f10217.pkl.sha256.json"]
    card, tensors, wanted = read_card(path), load_tensors(path), arrays()
    assert card.backend == "detectron2" and "CC BY-SA" in card.licence
    assert set(tensors) == {name for name in wanted if "anchor_generator" not in name}
    assert all(np.array_equal(tensor.numpy(), wanted[name]) for name, tensor in tensors.items())
    with pytest.raises(UserError, match="weights|checkpoint of detectron2\ngive it as maskrcnn.start"):
        card_for(path, "cellpose_unet")


def test_torchvisions_is_verified_by_its_published_sha256(server, weights_dir):  # noqa: F811
    (file,) = REGISTRY["maskrcnn_resnet50_fpn_v2"].files
    assert file.sha256.startswith(file.sha256_prefix) and file.sha256_prefix in file.url
    server.put(file.url.replace("https:/", ""), b"other bytes", "ok", "ok")
    entry = replace(REGISTRY["maskrcnn_resnet50_fpn_v2"], files=(replace(file, size_bytes=11),))
    with pytest.raises(UserError, match=f"has sha256 [0-9a-f]+, published is {file.sha256}"):
        fetch(entry.name, patience=QUICK, registry={entry.name: entry})


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return (os.mkdir, (self.folder,))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (lambda folder: pickle.dumps({"model": Trap(folder)}), "names [a-z]+.mkdir, which no array needs"),
        (lambda folder: pickle.dumps([1]), "holds no dictionary but a list"),
        (lambda folder: pickle.dumps({"a": 1}), "holds no 'model'"),
        (lambda folder: zoo({"backbone.a": np.zeros(3, np.float32)}), "is no detector with a ResNet-50"),
        (lambda folder: zoo(arrays() | {"roi_heads.x": "text"}), "roi_heads.x is no array of numbers"),
        (lambda folder: zoo()[:-20], "damaged|cut short"),
        (lambda folder: b"<html>sign in</html>", "damaged|opcode"),
    ],
)
def test_code_and_other_networks_are_not_taken(offline, weights_dir, tmp_path, body, told):  # noqa: F811
    path = tmp_path / "model_final_f10217.pkl"
    path.write_bytes(body(tmp_path / "sprung"))
    with pytest.raises(UserError, match=told) as caught:
        fetch(NAME, given=[path])
    assert "kept as model_final_f10217.pkl.bad" in str(caught.value) and "Cellpose" not in str(caught.value)
    assert not (tmp_path / "sprung").exists() and listing(weights_dir) == ["model_final_f10217.pkl.bad"]
    with pytest.raises(UserError, match="no file at"):
        read_zoo(tmp_path / "none.pkl")


def test_coco_is_what_the_backend_reads(weights_dir, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.yaml"
    path.write_text("classes: [HEK, N2a]\nmaskrcnn: {start: coco, backbone: resnet50_fpn_v2}\n")
    (tmp_path / "coco").mkdir()  # a folder beside the configuration is no file of weights
    config = load_config(path).maskrcnn
    assert config.start == "coco"
    run = SimpleNamespace(find=None, stages=dict)
    with pytest.raises(UserError, match="weights 'maskrcnn_resnet50_fpn_v2' are not here"):
        with_weights(config, run)
    other = {"maskrcnn.backend": "maskrcnn_detectron2", "maskrcnn.backbone": "resnet50_fpn"}
    with pytest.raises(UserError, match=f"weights '{NAME}' are not here.*\n.*cellkit fetch {NAME}"):
        with_weights(load_config(path, other).maskrcnn, run)
    (tmp_path / "coco").rmdir()
    torch.save({}, tmp_path / "coco")
    assert named_for("coco", ["detectron2"]) == "coco", "a file of that name is that file"
