"""Weights: the right bytes, opened safely, found by name, never another one in their place."""

import argparse
import json
import pickle
import shutil

import pytest
import torch

from cellkit.config.sections import FinetuneConfig
from cellkit.errors import UserError
from cellkit.fetch.find import find_weights
from cellkit.files import read_json, write_json
from cellkit.models.weights import (
    add_to_card,
    card_for,
    copy_checkpoint,
    hashed,
    licence_from,
    load_tensors,
    numbers_in,
    parents_of,
    read_card,
    save_checkpoint,
)
from cellkit.predict.model import find_model
from cellkit.run.folder import Run

TENSORS = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.tensor([1.5], dtype=torch.float16)}


@pytest.fixture
def checkpoint(tmp_path):
    told = {"classes": ("HEK", "N2a"), "config": {"diameter_px": 30.0}, "metrics": {"map_iou": 0.5}, "licence": "CC0"}
    return save_checkpoint(tmp_path / "made/model.safetensors", TENSORS, "cellpose_unet", **told)


@pytest.fixture
def run_dir(tmp_path, checkpoint):
    """A run whose stage 03 is finished and lists one checkpoint."""
    run = Run(tmp_path / "run")
    stage = run.start("03_finetune_cellpose", FinetuneConfig())
    kept = copy_checkpoint(checkpoint, stage.folder / "cellpose_tuned")
    stage.done(cellpose_tuned_checkpoint=kept, cellpose_card=kept.with_suffix(".json"))
    return tmp_path / "run"


class TestCheckpoint:
    def test_comes_back_as_it_was(self, checkpoint):
        card = read_card(checkpoint)
        assert (card.backend, card.classes, card.licence) == ("cellpose_unet", ("HEK", "N2a"), "CC0")
        assert card.config == {"diameter_px": 30.0}
        assert card.metrics == {"map_iou": 0.5}
        loaded = load_tensors(checkpoint)
        assert loaded.keys() == TENSORS.keys()
        assert all(torch.equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in TENSORS.items())

    def test_same_tensors_same_bytes(self, checkpoint, tmp_path):
        again = save_checkpoint(tmp_path / "b.safetensors", dict(reversed(TENSORS.items())), "cellpose_unet")
        assert read_card(again).sha256 == read_card(checkpoint).sha256

    def test_what_is_trained_from_it_is_under_its_licence_too(self, checkpoint, tmp_path):
        words = "of your images, and of model, from which it began: CC0"
        assert licence_from(checkpoint) == words
        tuned = save_checkpoint(tmp_path / "tuned.safetensors", TENSORS, "cellpose_unet", licence=words)
        assert licence_from(tuned).endswith("and of model, from which it began: CC0"), "however often it is tuned on"
        assert licence_from("scratch") == "of your images"
        tuned.with_suffix(".json").unlink()
        assert licence_from(tuned) == "of your images, and of tuned, from which it began"

    @pytest.mark.parametrize("text", ['{"epochs": 100, "lr": 0.005}', "[1, 2]", '{"metrics": {"known_as": "x"}}', "{"])
    def test_a_json_of_another_kind_beside_a_torch_file_is_no_card(self, tmp_path, text):
        torch.save(TENSORS, tmp_path / "own.pth")
        side = tmp_path / "own.json"
        side.write_text(text)
        assert parents_of(tmp_path / "own.pth") == ["own"]
        assert licence_from(tmp_path / "own.pth") == "of your images, and of own, from which it began"
        add_to_card(tmp_path / "own.pth", map_iou=0.5)
        assert side.read_text() == text, "what is no card is not written into"
        copy_checkpoint(tmp_path / "own.pth", tmp_path / "there/base")
        assert [path.name for path in (tmp_path / "there").iterdir()] == ["base.pth"]

    def test_no_name_of_an_image_is_in_what_stands_for_it(self):
        names = ["patient_07/HEK_01", "patient_07/HEK_02"]
        codes = hashed(names)
        assert codes == hashed(names) and len(set(codes)) == 2 and codes[::-1] == hashed(names[::-1])
        assert not any(part in code for code in codes for part in ("patient", "HEK", "07/"))

    def test_a_view_is_saved_as_what_it_shows(self, tmp_path):
        path = save_checkpoint(tmp_path / "t.safetensors", {"t": TENSORS["a"].T}, "threshold")
        assert torch.equal(load_tensors(path)["t"], TENSORS["a"].T)

    def test_other_bytes_than_the_card_says(self, checkpoint):  # fault 43
        content = bytearray(checkpoint.read_bytes())
        content[-1] ^= 1
        checkpoint.write_bytes(content)
        with pytest.raises(UserError, match="sha256 differs"):
            read_card(checkpoint)

    def test_no_weights_no_card_no_good_card(self, checkpoint, tmp_path):
        with pytest.raises(UserError, match="no checkpoint at"):
            read_card(tmp_path / "none.safetensors")
        card = checkpoint.with_suffix(".json")
        whole = read_json(card)
        wrong = (
            {"extra": 1},
            {"config": None},
            {"config": [1]},
            {"metrics": None},
            {"classes": [1]},
            {"classes": None},
        )
        for bad in ("{", '{"backend": "x"}', "[]", *(json.dumps(whole | one) for one in wrong)):
            card.write_text(bad)
            with pytest.raises(UserError, match=r"model\.json is no card"):
                read_card(checkpoint)
        card.unlink()
        with pytest.raises(UserError, match=r"has no card beside it \(model\.json\)"):
            read_card(checkpoint)

    @pytest.mark.parametrize(
        ("key", "value", "wanted"),
        [
            ("diameter_px", "forty", "a number >= 2"),
            ("diameter_px", -40, "a number >= 2"),
            ("channels", "Nuclei", "one of"),
            ("precision", "fp16", "one of"),
            ("normalise", [1, 99, 3], "a list of 2 numbers"),
        ],
    )
    def test_a_setting_that_none_may_be_is_named_with_its_card(self, checkpoint, key, value, wanted):
        side = checkpoint.with_suffix(".json")
        write_json(side, read_json(side) | {"config": {"diameter_px": 30.0, key: value}})
        opened = [lambda: card_for(checkpoint, "cellpose_unet")] * (
            value != -40
        )  # what a training measured has no limits
        for ask in (lambda: find_model(checkpoint), *opened):
            with pytest.raises(UserError) as caught:
                ask()
            assert caught.value.problem.startswith(f"{side}: {key} is {value!r}, wanted is {wanted}")
            assert "copy the .json" in caught.value.remedy

    def test_what_a_card_does_not_say_is_named(self, checkpoint):
        card = read_card(checkpoint)
        assert card.told("diameter_px", checkpoint) == 30.0
        with pytest.raises(UserError, match=r"model\.json does not say backbone"):
            card.told("backbone", checkpoint)

    def test_copied_with_its_card(self, checkpoint, tmp_path):
        copied = copy_checkpoint(checkpoint, tmp_path / "there/base")
        assert copied == tmp_path / "there/base.safetensors"
        assert read_card(copied) == read_card(checkpoint)
        assert copy_checkpoint(copied, tmp_path / "there/base") == copied, "onto itself"


class Trap:
    """What a malicious pickle would do: run a function of the attacker's choice."""

    sprung = False

    def __reduce__(self):
        return (_spring, ())


def _spring():
    Trap.sprung = True
    return {}


class TestLoadTensors:
    def test_a_torch_file_of_tensors(self, tmp_path):
        torch.save(TENSORS, tmp_path / "cyto3")
        assert load_tensors(tmp_path / "cyto3").keys() == TENSORS.keys()

    @pytest.mark.parametrize("how", ["torch", "pickle"])
    def test_code_in_a_file_is_not_run(self, tmp_path, how):  # fault 40
        path = tmp_path / "model.pt"
        torch.save({"a": Trap()}, path) if how == "torch" else path.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(UserError, match="no checkpoint that can be opened safely"):
            load_tensors(path)
        assert not Trap.sprung

    def test_more_than_tensors(self, tmp_path):
        torch.save({"a": TENSORS["a"], "epoch": 3}, tmp_path / "model.pt")
        with pytest.raises(UserError, match="more than named tensors"):
            load_tensors(tmp_path / "model.pt")

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    @pytest.mark.parametrize(("value", "dtype"), [("nan", "float32"), ("inf", "float16"), ("-inf", "float64")])
    def test_of_a_training_that_diverged(self, tmp_path, name, value, dtype):
        numbers = torch.tensor([0, float(value), 1], dtype=getattr(torch, dtype))
        torn = {**TENSORS, "c.weight": numbers, "n": torch.tensor(3)}
        torn["none"] = torch.zeros(0)
        if name == "w.pth":
            torch.save(torn, tmp_path / name)
        else:
            save_checkpoint(tmp_path / name, torn, "cellpose_unet")
        with pytest.raises(
            UserError, match=r"not finite in 1 of 5 tensors, e\.g\. c\.weight\nwhere its training diverged"
        ):
            load_tensors(tmp_path / name)

    @pytest.mark.parametrize("name", ["bn.running_var", "running_mean", "a.bias", "diam_mean"])
    def test_what_a_network_computes_with_is_finite(self, tmp_path, name):
        torch.save({**TENSORS, name: torch.tensor([1.0, float("inf")])}, tmp_path / "w.pth")
        with pytest.raises(UserError, match=f"not finite in 1 of 3 tensors, e.g. {name}"):
            load_tensors(tmp_path / "w.pth")

    def test_a_mask_may_be_infinite_but_not_nan(self, tmp_path):
        mask = torch.triu(torch.full((3, 3), float("-inf")), 1)
        torch.save({**TENSORS, "mask": mask}, tmp_path / "w.pth")
        assert torch.equal(load_tensors(tmp_path / "w.pth")["mask"], mask)
        torch.save({**TENSORS, "mask": mask * 0}, tmp_path / "w.pth")
        with pytest.raises(UserError, match="not finite in 1 of 3 tensors, e.g. mask"):
            load_tensors(tmp_path / "w.pth")

    @pytest.mark.filterwarnings("ignore:Validating sparse")
    def test_a_sparse_tensor_is_read(self, tmp_path):
        torch.save({**TENSORS, "c.weight": torch.eye(3).to_sparse()}, tmp_path / "w.pth")
        assert load_tensors(tmp_path / "w.pth")["c.weight"].is_sparse

    @pytest.mark.parametrize("keep", [0, 5, 60])
    def test_cut_short(self, checkpoint, keep):  # fault 39
        checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
        with pytest.raises(UserError, match="no checkpoint that can be opened"):
            load_tensors(checkpoint)

    def test_missing(self, tmp_path):
        with pytest.raises(UserError, match="no checkpoint at"):
            load_tensors(tmp_path / "none.safetensors")

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
    def test_of_a_wrapped_model(self, tmp_path, prefix):
        torch.save({f"{prefix}{name}": value for name, value in TENSORS.items()}, tmp_path / "w.pth")
        assert set(load_tensors(tmp_path / "w.pth")) == set(TENSORS)

    def test_more_than_tensors_is_said_without_codes_of_a_terminal(self, tmp_path):
        torch.save({"model": TENSORS, "args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
        with pytest.raises(UserError, match="opened safely") as caught:
            load_tensors(tmp_path / "w.pth")
        assert "\x1b" not in str(caught.value)


class TestFindWeights:
    def test_a_path(self, checkpoint):
        assert find_weights(checkpoint) == find_weights(str(checkpoint)) == checkpoint

    def test_of_a_run(self, run_dir):
        found = find_weights(f"{run_dir}:cellpose_tuned")
        assert found == run_dir / "03_finetune_cellpose/cellpose_tuned.safetensors"
        assert read_card(found).classes == ("HEK", "N2a")

    def test_not_in_the_run(self, run_dir):
        with pytest.raises(UserError, match=r"no model 'celpose_tuned' \(did you mean 'cellpose_tuned'\?\)") as caught:
            find_weights(f"{run_dir}:celpose_tuned")
        assert str(caught.value).endswith("its models are: cellpose_tuned")

    def test_of_a_stage_that_failed(self, run_dir):
        manifest = read_json(run_dir / "manifest.json")
        manifest["stages"]["03_finetune_cellpose"]["status"] = "failed"
        write_json(run_dir / "manifest.json", manifest)
        with pytest.raises(UserError, match="its models are: none yet"):
            find_weights(f"{run_dir}:cellpose_tuned")

    def test_no_such_run(self, tmp_path):
        with pytest.raises(UserError, match="a run folder that is not there"):
            find_weights(f"{tmp_path}/none:cellpose_tuned")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match=r"no manifest\.json"):
            find_weights(f"{tmp_path}/empty:cellpose_tuned")

    @pytest.mark.parametrize("text", ["", "{", "\0" * 64])
    def test_a_run_whose_manifest_is_damaged(self, run_dir, text):
        (run_dir / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="is damaged or of another version"):
            find_weights(f"{run_dir}:cellpose_tuned")

    @pytest.mark.parametrize("path", ["C:\\models\\m.safetensors", "C:/models/m.safetensors"])
    def test_a_drive_is_no_run(self, path):
        for find in (find_weights, find_model):
            with pytest.raises(UserError) as caught:
                find(path)
            assert path in str(caught.value).splitlines()[0] and "run folder" not in str(caught.value)

    def test_a_name_is_never_replaced_by_another(self):
        with pytest.raises(UserError, match=r"no weights 'startr' \(did you mean 'starter'\?\)"):
            find_weights("startr")

    def test_a_name_that_can_be_fetched_is_not_fetched_here(self, monkeypatch, tmp_path):  # fault 42
        monkeypatch.setenv("CELLKIT_WEIGHTS", str(tmp_path))
        with pytest.raises(
            UserError, match=r"'cyto2' are not here .*\nrun: cellkit fetch cyto2; or by hand: .*cyto2torch_0"
        ):
            find_weights("cyto2")
        assert list(tmp_path.iterdir()) == []

    def test_a_name_of_the_package(self, monkeypatch, tmp_path, checkpoint):
        shutil.copytree(checkpoint.parent, tmp_path / "packaged")
        monkeypatch.setattr("cellkit.fetch.find.PACKAGED", tmp_path / "packaged")
        assert find_weights("model") == tmp_path / "packaged/model.safetensors"


class TestStarter:
    """The weights that ship with the package."""

    def test_are_small_half_precision_and_free(self):
        path = find_weights("starter")
        assert path.stat().st_size <= 14_000_000
        assert {tensor.dtype for tensor in load_tensors(path).values() if tensor.is_floating_point()} == {torch.float16}
        card = read_card(path)
        assert card.backend == "cellpose_unet"
        assert "CC0" in card.licence

    def test_open_as_the_network_they_are_for(self):
        from cellkit.models.unet_network import load_network

        network, _ = load_network(find_weights("starter"))
        assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(6.6e6, rel=0.01)
        assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())


def test_numbers_are_counted_without_reading_them(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"a": torch.zeros(3, 4, dtype=torch.float16), "b": torch.zeros(())}, "threshold")
    assert numbers_in(path) == 13
    path.write_bytes(b"x" * 40)
    assert numbers_in(path) == 10, "no head that can be read: as float32"
    assert numbers_in(tmp_path / "scratch") == 0
