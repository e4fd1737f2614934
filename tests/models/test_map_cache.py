"""Kept maps are the maps; damaged ones are none; and no more are kept than were asked for."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch

from cellkit.fetch.find import find_weights
from cellkit.models import cellpose_unet as unet
from cellkit.models import map_cache, unet_maps, weights
from cellkit.models.map_cache import FOLDER, MapCache
from cellkit.models.unet_network import CellposeUNet
from cellkit.parallel import map_items

IMAGE = np.random.default_rng(0).integers(0, 255, (48, 40, 3)).astype(np.uint8)


def light(seed: int = 0) -> CellposeUNet:
    """A network of random numbers, small enough to run in a moment."""
    torch.manual_seed(seed)
    return CellposeUNet(widths=(4, 8, 12, 16)).eval()


@pytest.fixture
def checkpoint(tmp_path):
    """The starter weights, as a training would leave them: a network that finds drawn cells."""
    card = {"map_cache_gb": 1.0, "diameter_px": 30.0, "cellprob_threshold": -1.0}
    tensors = weights.load_tensors(find_weights("starter"))
    return weights.save_checkpoint(tmp_path / "tuned.safetensors", tensors, unet.NAME, config=card)


class Find:
    """The cells of an image by a checkpoint, in whichever process."""

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint

    def __call__(self, image):
        return next(unet.load(self.checkpoint)([image]))


@pytest.fixture
def cache(tmp_path):
    return MapCache(light(), tmp_path / FOLDER, 1.0)


def test_the_same_cells_with_and_without_for_one_and_two_workers(checkpoint, drawn, monkeypatch):
    images = [drawn.image(k) for k in range(3)]
    without, _ = map_items(Find(checkpoint), images, "find")
    assert not (checkpoint.parent / FOLDER).exists(), "nothing is kept unless a stage under way keeps some"
    (checkpoint.parent / FOLDER).mkdir()
    for workers in (2, 1):
        kept, failed = map_items(Find(checkpoint), images, "find", workers=workers)
        assert kept == without and not failed and any(map(len, kept))
        assert len(list((checkpoint.parent / FOLDER).iterdir())) == 3
    monkeypatch.setattr(unet_maps, "forward", lambda *_: pytest.fail("the network runs again"))
    assert map_items(Find(checkpoint), images, "find")[0] == without


def test_maps_are_known_by_all_that_makes_them(cache, tmp_path):
    def place(network=None, image=IMAGE, settings=(30.0, "both", (1.0, 99.0))):
        of = MapCache(network or light(), tmp_path / FOLDER, 1.0)
        return of.place(image, *settings)

    other, resized = light(1), light()
    resized.diam_labels.data.fill_(77.0)
    changed = [
        place(other),
        place(image=IMAGE[::-1]),
        place(image=IMAGE[:, ::-1]),
        place(image=IMAGE.reshape(40, 48, 3)),
    ]
    changed += [place(settings=(31.0, "both", (1.0, 99.0))), place(settings=(30.0, "nuclei", (1.0, 99.0)))]
    changed += [place(settings=(30.0, "both", (0.0, 100.0)))]
    assert len({place(), *changed}) == 8
    assert place(resized) == place() == place(image=np.asfortranarray(IMAGE)), "what changes no map changes no name"


def test_flipped_images_and_mixed_weights_are_kept_alike(tmp_path):
    one, other, mixed = light(0), light(1), light(0)
    mixed.load_state_dict({k: 0.5 * v + 0.5 * other.state_dict()[k] if v.is_floating_point() else v
                           for k, v in one.state_dict().items()})  # fmt: skip
    cache = MapCache(mixed, tmp_path, 1.0)
    for image in (IMAGE, IMAGE[::-1], IMAGE[:, ::-1]):
        first = unet_maps.predict_maps(mixed, image, 30.0, cache=cache)
        assert np.array_equal(first, unet_maps.predict_maps(None, image, 30.0, cache=cache)), "read, not computed"
        assert np.array_equal(first, unet_maps.predict_maps(mixed, image, 30.0))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("how", ["cut", "empty", "longer", *(f"byte {k}" for k in (0, 70, 200, -40, -1))])
def test_a_damaged_file_is_none(cache, how):
    network = light()
    maps = unet_maps.predict_maps(network, IMAGE, 30.0, cache=cache)
    (place,) = cache.folder.iterdir()
    assert np.array_equal(cache.read(place), maps)
    content = bytearray(place.read_bytes())
    if how.startswith("byte"):
        content[int(how.split()[1])] ^= 1
    place.write_bytes({"cut": content[:-50], "empty": b"", "longer": content + b"0"}.get(how, content))
    assert cache.read(place) is None
    assert np.array_equal(unet_maps.predict_maps(network, IMAGE, 30.0, cache=cache), maps)
    assert np.array_equal(cache.read(place), maps), "written again"


def test_the_oldest_go(cache):
    maps = np.zeros((3, 100, 100), np.float32)
    size = 0
    for k in range(4):
        cache.most_bytes = 3.5 * size if size else 1e9
        place = cache.folder / f"{k}.maps"
        cache.write(place, maps + k)
        size = place.stat().st_size
        for old in range(k + 1):
            if (cache.folder / f"{old}.maps").exists():
                os.utime(cache.folder / f"{old}.maps", (1000 + old, 1000 + old))
        if k == 2:
            assert cache.read(cache.folder / "0.maps").max() == 0, "and so it is no longer the oldest"
            os.utime(cache.folder / "0.maps", (5000, 5000))
    assert sorted(path.name for path in cache.folder.iterdir()) == ["0.maps", "2.maps", "3.maps"]
    assert size < 2 * maps.size + 300, "float16"


def test_a_full_disk_keeps_nothing_and_is_said(cache, monkeypatch, capsys):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(map_cache, "atomic_path", full)
    maps = unet_maps.predict_maps(light(), IMAGE, 30.0, cache=cache)
    assert maps.shape[0] == 3 and "maps are computed again when needed, not kept: " in capsys.readouterr().err


def test_zero_keeps_nothing(tmp_path):
    assert map_cache.cache_in(tmp_path, light(), 0) is None
    assert map_cache.cache_in(tmp_path, light(), 0.5).folder == tmp_path / FOLDER


def test_a_network_out_of_its_mind_is_kept_finite(cache, monkeypatch):
    monkeypatch.setattr(unet_maps, "forward", lambda network, planes: np.full((3, *planes.shape[1:]), 1e9, np.float32))
    assert np.isfinite(unet_maps.predict_maps(light(), IMAGE, 30.0, cache=cache)).all()
