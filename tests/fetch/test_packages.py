"""A package of bioimage.io gives weights to start from: its tensors, and nothing of it is run."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from cellkit.errors import UserError
from cellkit.fetch.find import find_weights, with_weights
from cellkit.models.cellpose_unet import TrainSettings, check
from cellkit.models.unet_network import CellposeUNet, load_network
from cellkit.models.weights import parents_of, read_card
from cellkit.predict.model import find_model

SMALL = (4, 8, 12, 16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/cellkit/packages"


def saved(value) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return CellposeUNet(widths=SMALL).state_dict()


def package(path: Path, content: bytes | None = None, name: str = "weights.pt", **about) -> Path:
    """Write a package as the collection's are: a description, a state dict, code."""
    content = saved(tensors()) if content is None else content
    told = {
        "format_version": "0.5.3",
        "type": "model",
        "id": "affable-shark",
        "name": "Cells",
        "license": "CC-BY-4.0",
        "weights": {"pytorch_state_dict": {"source": name, "architecture": {"source": "net.py", "callable": "Net"}}},
        **about,
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rdf.yaml", yaml.safe_dump(told))
        archive.writestr(name, content)
        archive.writestr("net.py", "raise SystemExit('code of a package was run')")
    return path


def test_its_tensors_become_a_checkpoint_with_a_card(tmp_path, cache):
    zipped = package(tmp_path / "model.zip")
    path = find_weights(zipped)
    assert path.is_relative_to(cache) and path.name == "model.safetensors"
    network, _ = load_network(path, "float32")
    assert network.widths == SMALL
    assert all(torch.equal(network.state_dict()[name].cpu(), value) for name, value in tensors().items())
    card = read_card(path)
    assert (card.licence, card.metrics["known_as"]) == ("CC-BY-4.0", "bioimage.io:affable-shark")
    assert parents_of(path) == ["bioimage.io:affable-shark"]
    made = path.stat().st_mtime_ns
    assert find_weights(zipped) == path and path.stat().st_mtime_ns == made, "taken in once"


def test_a_training_starts_from_it(tmp_path):
    config = with_weights(TrainSettings(base=str(package(tmp_path / "model.zip"))))
    check(config)
    assert config.base.endswith("model.safetensors")


def test_safetensors_in_it_are_read_too(tmp_path):
    from safetensors.torch import save

    path = find_weights(package(tmp_path / "m.zip", save(tensors()), "weights.safetensors"))
    assert torch.equal(load_network(path, "float32")[0].output[2].weight.cpu(), tensors()["output.2.weight"])


def test_what_cellkit_put_into_the_description_comes_back(tmp_path):
    config = {"diameter_px": 21.0, "flow_threshold": 0.2, "min_area_px": 9, "widths": list(SMALL)}
    zipped = package(tmp_path / "m.zip", config={"cellkit": {"config": config, "parents": ["starter"]}})
    model = find_model(zipped)
    assert {key: model.config[key] for key in ("diameter_px", "flow_threshold", "min_area_px")} == {
        "diameter_px": 21.0,
        "flow_threshold": 0.2,
        "min_area_px": 9,
    }
    assert parents_of(model.checkpoint) == ["bioimage.io:affable-shark", "starter"]


@pytest.mark.parametrize("nonsense", [{"cellkit": {"config": [1], "parents": 5}}, {"cellkit": 3}, [1, 2]])
def test_a_description_that_says_nonsense_of_settings_says_nothing(nonsense, tmp_path):
    path = find_weights(package(tmp_path / "m.zip", config=nonsense))
    assert parents_of(path) == ["bioimage.io:affable-shark"]


class Evil:
    def __reduce__(self):
        return (SystemExit, ("a pickle was run",))


def member_outside(path: Path) -> Path:
    package(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../outside.txt", "x")
    return path


def without_description(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.pt", b"x")
    return path


STATE = {"source": "weights.pt"}
FAULTS = {
    "a member outside": (member_outside, "would be written outside the folder"),
    "no description": (without_description, "it has no rdf.yaml"),
    "a pickle": (lambda path: package(path, saved({"a": Evil()})), "no checkpoint that can be opened safely"),
    "more than tensors": (lambda path: package(path, saved({"a": 5})), "holds more than named tensors"),
    "another network": (lambda path: package(path, saved({"a": torch.ones(2)})), "holds no two-channel Cellpose U-Net"),
    "another sha256": (
        lambda path: package(path, weights={"pytorch_state_dict": {**STATE, "sha256": "0" * 64}}),
        "are not those of its description",
    ),
    "weights elsewhere": (
        lambda path: package(path, weights={"pytorch_state_dict": {"source": "../../etc/passwd"}}),
        "are not in it",
    ),
    "a name that no file has": (
        lambda path: package(path, weights={"pytorch_state_dict": {"source": "w" * 5000 + "\0"}}),
        "are not in it",
    ),
    "tensors laid out otherwise": (
        lambda path: package(
            path, saved({k: v.transpose(0, 1) if k == "output.2.weight" else v for k, v in tensors().items()})
        ),
        "holds no two-channel Cellpose U-Net",
    ),
    "only a program": (
        lambda path: package(path, weights={"torchscript": STATE}),
        "it needs a pytorch_state_dict, and has torchscript",
    ),
    "no model": (lambda path: package(path, type="dataset"), "holds no model"),
    "a setting beyond its limits": (
        lambda path: package(path, config={"cellkit": {"config": {"diameter_px": -4}}}),
        "says diameter_px = -4",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_package_is_said_and_nothing_is_kept(fault, tmp_path, cache):
    make, words = FAULTS[fault]
    with pytest.raises(UserError, match=words):
        find_weights(make(tmp_path / "m.zip"))
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert not (tmp_path / "outside.txt").exists()


def test_checkpoint_in_the_cache_that_was_changed_is_refused(tmp_path):
    zipped = package(tmp_path / "m.zip")
    path = find_weights(zipped)
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match="is not the file its card describes"):
        find_weights(zipped)


@pytest.mark.parametrize(
    "told", [{"scale": float("nan")}, {"channels": {"nuclei": [[["a"]]]}}, ["x"] * 99, {"axes": "x" * 999}]
)
def test_a_conversion_of_others_is_kept_small_and_checked(tmp_path, told):
    zipped = package(tmp_path / "model.zip", config={"cellkit": {"conversion": told}})
    with pytest.raises(UserError, match="the conversion of files that comes with a model has "):
        find_model(zipped)
