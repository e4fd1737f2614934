"""Cellpose-SAM applied to images: the maps and the masks are those of `CellposeModel.eval`."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from sam_cases import small_checkpoint, small_encoder

from cellkit.cells.instances import Instances
from cellkit.models import cellpose_sam as sam
from cellkit.models.map_cache import FOLDER, cache_in
from cellkit.models.sam_maps import KEPT_AS, predict_maps
from cellkit.models.sam_network import applied_only, load_network
from cellkit.models.shared.flows import masks_of


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blurred noise of three colours, (height, width, 3) uint8."""
    noise = np.random.default_rng(seed).random((height, width, 3))
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 6) * 1200 - 500, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights whose flows are long enough that pixels meet."""
    from cellkit.models import weights
    from cellkit.models.sam_network import BACKEND

    folder = tmp_path_factory.mktemp("sam")
    path = small_checkpoint(folder / "random")
    tensors = weights.load_tensors(path)
    tensors["out.weight"] *= 3
    tensors["out.bias"] *= 3
    return weights.save_checkpoint(folder / "sam.safetensors", tensors, BACKEND)


@pytest.fixture
def package(checkpoint, tmp_path, monkeypatch):
    """The cellpose package's own model, with these weights, as small."""
    import cellpose.models
    import cellpose.vit

    from cellkit.models.weights import load_tensors

    monkeypatch.setitem(cellpose.vit.sam_model_registry, "vit_l", small_encoder)
    monkeypatch.setattr(cellpose.models, "cache_model_path", lambda *_: pytest.fail("nothing is downloaded"))
    torch.save(load_tensors(checkpoint), tmp_path / "published")
    return cellpose.models.CellposeModel(gpu=False, pretrained_model=str(tmp_path / "published"), use_bfloat16=False)


@pytest.mark.parametrize("flow_threshold", [0.0, 1.2])
@pytest.mark.parametrize("shape", [(256, 256), (90, 300), (300, 270)])
def test_maps_and_masks_are_the_packages(checkpoint, package, shape, flow_threshold):
    image = picture(*shape)
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        masks, (_, flows, cellprob), _ = package.eval(image, flow_threshold=flow_threshold, min_size=0)
    theirs = np.stack([*flows, cellprob])
    assert masks.max() > 50 and theirs.std() > 1
    (maps,) = predict_maps(applied_only(load_network(checkpoint, "float32")[0]), [image])
    np.testing.assert_allclose(maps, theirs, atol=1e-4)
    assert masks_of(theirs, shape, flow_threshold, 0.0, 0) == Instances.from_labels(masks).with_scores(
        masks_of(theirs, shape, flow_threshold, 0.0, 0).scores
    )
    settings = sam.Settings(precision="float32", flow_threshold=flow_threshold, min_area_px=0)
    (found,) = sam.load(checkpoint, settings)([image])
    assert abs(len(found) - masks.max()) <= 1
    assert ((found.paint() > 0) != (masks > 0)).mean() < 1e-3, "pixels of random maps may go either way"


@pytest.mark.parametrize("diameter_px", [20.0, 45.0])
def test_maps_at_a_diameter_are_the_packages(checkpoint, package, diameter_px):
    image = picture(200, 190)
    _, (_, flows, cellprob), _ = package.eval(image, diameter=diameter_px, compute_masks=False)
    (maps,) = predict_maps(applied_only(load_network(checkpoint, "float32")[0]), [image], diameter_px)
    assert maps.shape[1:] == (int(200 * 30 / diameter_px), int(190 * 30 / diameter_px))
    enlarged = [cv2.resize(one, (190, 200), interpolation=cv2.INTER_LINEAR) for one in maps]
    np.testing.assert_allclose(enlarged, [*flows, cellprob], atol=1e-4)


def test_squares_of_many_images_go_together(checkpoint):
    network, seen = applied_only(load_network(checkpoint, "float32")[0]), []
    network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    images = [picture(*shape, seed) for seed, shape in enumerate([(256, 256), (60, 70), (240, 200), (300, 100)])]
    alone = [next(predict_maps(network, [image])) for image in images]
    assert set(seen) == {1}, "one at a time on a processor"
    seen.clear()
    together = [*predict_maps(network, images, at_once=3)]
    assert sum(seen) == 4 + 1 + 1 + 2 and seen == [3, 3, 2]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_channels_are_those_of_the_run_and_in_any_order(checkpoint):
    network = applied_only(load_network(checkpoint, "float32")[0])
    image = picture(90, 80)
    shown = {"all": (0, 1, 2), "both": (1, 2), "nuclei": (2,), "cytoplasm": (1,)}
    for channels, kept in shown.items():
        left = np.zeros_like(image)
        left[..., kept] = image[..., kept]
        maps, expected = ([*predict_maps(network, [one], channels=name)][0] for one, name in
                          ((image, channels), (left, "all")))  # fmt: skip
        np.testing.assert_array_equal(maps, expected)


def test_maps_are_kept_as_they_are(checkpoint, tmp_path, monkeypatch):
    network = load_network(checkpoint, "float32")[0]
    cache = cache_in(tmp_path, network, 1.0, KEPT_AS)
    image, network = picture(90, 80), applied_only(network)
    (first,) = predict_maps(network, [image], cache=cache)
    assert len([*(tmp_path / FOLDER).iterdir()]) == 1
    monkeypatch.setattr(type(network), "forward", lambda *_: pytest.fail("computed again"))
    (again,) = predict_maps(network, [image], cache=cache)
    np.testing.assert_array_equal(first, again)


def test_a_network_that_is_only_applied_gives_the_same_maps(checkpoint):
    trained, image = load_network(checkpoint, "bfloat16")[0], picture(90, 80)
    (before,) = predict_maps(trained, [image])
    (after,) = predict_maps(applied_only(trained), [image])
    np.testing.assert_array_equal(before, after)
    assert {value.dtype for name, value in trained.named_parameters() if "qkv" in name} == {torch.bfloat16}
