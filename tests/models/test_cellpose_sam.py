"""Adapting Cellpose-SAM: every way learns and resumes, a worse model is not kept, memory that runs out changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sam_cases import small_network
from sam_learnt import LEARNER, data_of, learnt

from cellkit.cells.dataset import predict_all
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.evaluate.adaptation import adapt
from cellkit.evaluate.folds import fold_settings
from cellkit.evaluate.verdict import keep_if_better
from cellkit.models import cellpose_sam as sam
from cellkit.models import sam_training, sam_ways
from cellkit.models.gate import THREE_PARTS
from cellkit.models.interpolation import STEPS, steps_between
from cellkit.models.sam_dino import CellposeDINO, DinoShape
from cellkit.models.sam_network import Shape, load_network, load_start
from cellkit.models.sam_training import WAYS, steps_of
from cellkit.models.shared import processes
from cellkit.models.shared.flow_loss import FlowLoss
from cellkit.models.shared.inputs import Doubts
from cellkit.models.weights import load_tensors, read_card, save_checkpoint
from cellkit.settings import free_fields

READ = {"flow_threshold": 0.4, "cellprob_threshold": 0.0, "min_area_px": 15}
THREE = ("train",) * 3 + ("val",) * 14


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return learnt(tmp_path_factory.mktemp("base") / "base", 150)


@pytest.fixture(scope="module")
def beginner(tmp_path_factory):
    return learnt(tmp_path_factory.mktemp("base") / "beginner", 60)


def settings(base, **changes):
    few = {"steps": 4, "batch_size": 2, "crop_px": 64, "eval_every": 2, "late_blocks": 1, "learning_rate": 1e-3,
           "precision": "float32"}  # fmt: skip
    return sam.TrainSettings(**({"base": str(base)} | few | READ | changes))


def changed(path, base) -> set[str]:
    ours, theirs = load_tensors(path), load_tensors(base)
    assert set(ours) == set(theirs), "a plain Cellpose-SAM"
    return {name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name]) and name != "diam_labels"}


class Killed(BaseException):
    pass


# ---- settings ------------------------------------------------------------------------------------------------------
def test_what_is_not_set_follows_from_the_way():
    for way, told in WAYS.items():
        found = sam.TrainSettings(way=way)
        assert {name: getattr(found, name) for name in told} == told
    assert sam.TrainSettings() == sam.TrainSettings(way="late"), "the defaults are those of late blocks"
    assert (
        sam.TrainSettings(way="lora", steps=7).steps == 7 and fold_settings(sam.TrainSettings(way="lora")).steps == 100
    )
    rate = sam.TrainSettings(way="all").learning_rate
    published = sam.TrainSettings(recipe="published")
    assert (published.way, published.learning_rate, published.weight_decay, published.batch_size) == (
        "all",
        1e-5,
        0.1,
        1,
    )
    assert rate == 1e-5 and steps_of(published, 5) == 800 and steps_of(published, 30) == 3000
    with pytest.raises(ValidationError, match="trains all weights, and way: lora; leave one out"):
        sam.TrainSettings(recipe="published", way="lora")


def test_lora_without_its_package_is_refused_before_anything_begins(monkeypatch):
    monkeypatch.setattr(sam_training, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package 'peft'\npip install peft"):
        sam.check(sam.TrainSettings(way="lora"))
    sam.check(sam.TrainSettings(way="late"))


def test_a_rate_meant_for_a_u_net_is_refused_before_anything_begins(monkeypatch):
    monkeypatch.setattr(sam_training, "find_spec", lambda name: True)
    with pytest.raises(
        UserError, match="0.0006, more than 10 times the 1e-05 of way: late\nleave it out, so that it is"
    ):
        sam.check(sam.TrainSettings(learning_rate=6e-4))
    with pytest.raises(UserError, match="way: all"):
        sam.check(sam.TrainSettings(recipe="published", learning_rate=6e-4))
    sam.check(sam.TrainSettings(learning_rate=1e-4))
    sam.check(sam.TrainSettings(way="lora", learning_rate=6e-4))
    sam.check(sam.TrainSettings(base="scratch", learning_rate=6e-4))


def test_what_a_training_would_refuse_at_its_turn_is_refused_before_anything_begins(base, tmp_path, monkeypatch):
    mild = settings(base, learning_rate=1e-5)
    sam.check(mild)
    with pytest.raises(UserError, match="late_blocks is 3, the network has 2 blocks\nset fewer, or way: all"):
        sam.check(mild.model_copy(update={"late_blocks": 3}))
    dino = tmp_path / "dino.pth"
    torch.save(CellposeDINO(DinoShape(width=32, depth=1, heads=2, mlp=32)).state_dict(), dino)
    with pytest.raises(UserError, match="Cellpose-DINO"):
        sam.check(mild.model_copy(update={"base": str(dino)}))
    two = mild.model_copy(update={"gpus": 2})
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="gpus is 2, which needs the package 'accelerate'\npip install accelerate"):
        sam.check(two)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="gpus is 2, this machine has 1\nset gpus lower"):
        sam.check(two)


def test_where_memory_is_short_a_tile_is_whole_tokens():
    with pytest.raises(ValidationError, match="multiple of 16"):
        sam.TrainSettings(crop_px=200)
    assert sam.TrainSettings(crop_px=208).crop_px // 2 % Shape().patch_px == 0


def test_what_the_network_could_be_shown_is_named_where_nothing_is_seen(capsys):
    green = np.zeros((16, 16, 3), np.uint8)
    green[4:8, 4:8, 1] = 200
    for choices in (("all", "both", "cytoplasm", "nuclei"), ("both", "cytoplasm", "nuclei")):
        Doubts("nuclei", choices).note(green, Instances.empty((16, 16)), Counter())
    said = capsys.readouterr().err
    assert (
        "set channels (all, both, cytoplasm or nuclei)" in said and "set channels (both, cytoplasm or nuclei)" in said
    )


def test_parts_change_no_more_than_rounding_unless_dropout_is_set():
    assert sam.TrainSettings(way="lora").lora_dropout == 0
    assert sam_training.where_parts_matter(sam.TrainSettings(way="late", lora_dropout=0.1)) == ()
    few, many = (sam.TrainSettings(way="lora", lora_dropout=0.1, at_once=k) for k in (1, 2))
    assert sam_training.where_parts_matter(few) != sam_training.where_parts_matter(many)
    # what decides whether a finished stage is made again
    same = [sam.TrainSettings(way="lora", gpus=k) for k in (1, 2)]
    other = [sam.TrainSettings(way="lora", lora_dropout=0.1, gpus=k) for k in (1, 2)]
    told = [one.model_dump(exclude=free_fields(one)) for one in (*same, *other)]
    assert told[0] == told[1] and told[2] != told[3]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_crops_at_a_time_change_a_step_of_lora_only_where_there_is_dropout(dropout, tmp_path):
    pytest.importorskip("peft")
    items, losses = [sam._item(*data_of(tmp_path, ("train",))[0], sam.DEFAULTS | {"diameter_px": None})], []
    for at_once in (1, 4):
        how = {"lora_rank": 2, "lora_dropout": dropout, "batch_size": 4, "crop_px": 64, "at_once": at_once}
        network = small_network()
        loss_at = sam_training.loss_of(network, items, sam.TrainSettings(way="lora", **how))
        for name, value in network.named_parameters():
            if "lora_B" in name:  # zeros until something is learnt
                torch.nn.init.constant_(value, 1.0)
        network.train()
        torch.manual_seed(0)
        losses.append(float(loss_at(0)))
    assert (losses[0] == pytest.approx(losses[1], rel=1e-5)) == (dropout == 0)


def test_cellpose_dino_is_not_adapted(base):
    with pytest.raises(UserError, match="Cellpose-DINO, which finds cells here and is not adapted\nset base: cpsam_v2"):
        sam_training.loss_of(CellposeDINO(DinoShape(width=32, depth=1, heads=2, mlp=32)), [], settings(base))


def test_a_crop_larger_than_the_networks_square_is_refused(base):
    network, _ = load_network(base)
    network.shape = type(network.shape)(tile_px=64)
    with pytest.raises(UserError, match="crop_px is 128, the network sees squares of 64 px\nset finetune.crop_px"):
        sam_training.loss_of(network, [], settings(base, crop_px=128))


# ---- every way -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("way", "parts"),
    [("head", ("encoder.neck", "out")), ("late", ("encoder.neck", "out", "encoder.blocks.1")),
     ("lora", ("encoder.blocks.0.attn.qkv", "encoder.blocks.1.attn.qkv")), ("all", ("encoder", "out"))],
)  # fmt: skip
def test_killed_and_resumed_it_ends_with_the_same_weights_and_a_plain_checkpoint(
    way, parts, base, tmp_path, monkeypatch
):
    pytest.importorskip("peft") if way == "lora" else None
    data = data_of(tmp_path / "images", ("train", "train", "val"))
    given = data.select("train"), data.select("val"), settings(base, way=way, eval_every=3)
    whole = sam.train(*given, tmp_path / "whole")
    names = changed(whole, base)
    assert names and all(name.startswith(parts) for name in names)
    assert all(any(name.startswith(part) for name in names) for part in parts)
    card = read_card(whole)
    assert card.metrics["adapted"]["way"] == way and card.metrics["base"] == "base" and "base" in card.licence
    monkeypatch.setattr("cellkit.models.training.SAVE_EVERY_S", -1.0)  # after every step
    drawn = FlowLoss.drawn

    def dies(self, step):
        if step == 2:
            raise Killed
        return drawn(self, step)

    monkeypatch.setattr(FlowLoss, "drawn", dies)
    with pytest.raises(Killed):
        sam.train(*given, tmp_path / "killed")
    taken = []
    monkeypatch.setattr(FlowLoss, "drawn", lambda self, step: taken.append(step) or drawn(self, step))
    again = sam.train(*given, tmp_path / "killed")
    assert taken == [2, 3], "what was done is not done again"
    assert not changed(again, whole)


def test_what_is_trained_can_be_read_and_lies_a_step_from_its_base(base, tmp_path):
    data = data_of(tmp_path / "images", ("train", "val"))
    how = settings(base)
    tuned = sam.train(data.select("train"), data.select("val"), how, tmp_path)
    start = sam.calibrate(data.select("train"), how, tmp_path / "start")
    assert steps_between(start, tuned) == STEPS
    (found,) = sam.load(tuned)([data.image(1)])
    assert len(found) > 5 and sam.load(tuned).settings["flow_threshold"] == 0.4
    assert sam.ceiling(data, how) > 0.9


def test_thresholds_that_are_not_set_are_searched_on_training_images(base, tmp_path):
    data = data_of(tmp_path, ("train", "train"))
    unset = settings(base).model_copy(update=dict.fromkeys(READ))
    card = read_card(sam.calibrate(data, unset, tmp_path / "start"))
    assert set(card.metrics["searched"]["settings"]) == set(READ) and card.metrics["searched"]["images"] == 2
    assert card.metrics["searched"]["score"] > 0.3


# ---- the gate ------------------------------------------------------------------------------------------------------
def test_a_model_made_worse_on_purpose_is_not_kept(base, tmp_path):
    """Labels moved by 5 px teach it to outline cells beside where they are."""
    how = settings(base, way="all", steps=30, learning_rate=2e-3, batch_size=4, eval_every=30, recompute=False)
    data = data_of(tmp_path / "images", THREE, shift_px=5)
    adapted = adapt(sam, data, how, tmp_path / "out")
    assert adapted.regime.name == THREE_PARTS and adapted.verdict.kept == "base" and adapted.kept == adapted.base
    last = sam.train(data.select("train"), data.subset([]), how, tmp_path / "last")  # where no image chooses weights
    judged = {"base": adapted.judged["base"], "tuned": predict_all(sam.load(last), adapted.judge)}
    verdict = keep_if_better(adapted.judge, judged)
    assert verdict.kept == "base" and verdict.gain.high < 0 and verdict.gain.difference < -0.1, "it is worse indeed"


def test_a_model_that_is_better_is_kept(beginner, tmp_path):
    how = settings(beginner, steps=80, learning_rate=3e-3, batch_size=4, eval_every=40, recompute=False)
    adapted = adapt(sam, data_of(tmp_path / "images", THREE), how, tmp_path / "out")
    assert adapted.verdict.kept == "tuned" and adapted.step > 0
    assert adapted.verdict.gain.low > 0 and read_card(adapted.kept).metrics["adapted"]["way"] == "late"


# ---- memory --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("fits", "said"), [(2, 1), (1, 2), (0.25, 3)])
def test_a_step_that_runs_out_of_memory_goes_on_with_less_at_a_time(fits, said, base, tmp_path, monkeypatch, capsys):
    data = data_of(tmp_path / "images", ("train", "train", "val"))
    how = settings(base, batch_size=4, at_once=4, crop_px=128, steps=3, stochastic_depth=0.4)
    given = data.select("train"), data.select("val"), how
    whole = load_tensors(sam.train(*given, tmp_path / "whole"))
    real = sam_ways.forward

    def forward(network, planes, *rest):
        maps = real(network, planes, *rest)
        if planes[:, 0].numel() > fits * 128**2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return maps

    monkeypatch.setattr(sam_ways, "forward", forward)
    monkeypatch.setattr(sam_training, "LEAST_PX", 64)
    found = load_tensors(sam.train(*given, tmp_path / "less"))
    assert capsys.readouterr().err.count("out of memory, so from here on") == said
    start = load_tensors(base)
    ways = [torch.cat([(one[name] - start[name]).flatten() for name in sorted(start)]) for one in (whole, found)]
    if fits >= 1:
        assert (ways[0] - ways[1]).abs().max() < 1e-4, "the step stays"
    else:
        assert torch.cosine_similarity(*ways, dim=0) > 0.7, (
            "tiles do not see each other, and learn the same all the same"
        )
    monkeypatch.setattr(sam_training, "LEAST_PX", 128)
    if fits < 1:
        with pytest.raises(UserError, match="does not hold one training tile of 128 px: .*\nset finetune.way: head"):
            sam.train(*given, tmp_path / "none")


def test_the_same_start_for_the_same_seed(base, tmp_path):
    pytest.importorskip("peft")
    data = data_of(tmp_path / "images", ("train", "val"))
    made = [sam.train(*[data.select(s) for s in ("train", "val")], settings(base, way="lora", seed=seed), tmp_path / str(k))
            for k, seed in enumerate((1, 1, 2))]  # fmt: skip
    assert not changed(made[0], made[1]) and changed(made[0], made[2])
    assert np.isfinite([tensor.sum() for tensor in load_tensors(made[0]).values()]).all()


# ---- several processes ---------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("gpus", [2])
def test_two_processes_take_the_steps_of_one(gpus, base, tmp_path):
    pytest.importorskip("accelerate")
    data = data_of(tmp_path / "images", ("train", "train", "val"))
    given = data.select("train"), data.select("val")
    one = load_tensors(sam.train(*given, settings(base, batch_size=3), tmp_path / "one"))
    made = sam.train(*given, settings(base, batch_size=3, gpus=gpus), tmp_path / "two")
    assert made == tmp_path / "two/cellpose_tuned.safetensors" and (tmp_path / "two/history.csv").is_file()
    two, start = load_tensors(made), load_tensors(base)
    assert max(float((two[name] - one[name]).abs().max()) for name in one) < 1e-4
    assert max(float((start[name] - one[name]).abs().max()) for name in one if name != "diam_labels") > 1e-3
    again = sam.train(*given, settings(base, batch_size=3), tmp_path / "two")
    assert not changed(again, made), "it was finished, by whoever"
    refused = dict(settings(small_squares(tmp_path), crop_px=256))
    with pytest.raises(UserError, match="crop_px is 256, the network sees squares"):  # one process is enough to say so
        processes.train_on(1, sam.NAME, *given, refused, tmp_path / "none")


def small_squares(folder):
    shape = replace(LEARNER, tile_px=128)
    return save_checkpoint(folder / "small.safetensors", load_start("scratch", 0, shape).state_dict(), "cellpose_sam")
