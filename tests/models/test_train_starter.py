"""The script that trains the starter weights: what makes a training the same, and what is refused before it takes time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import train_starter

from cellkit.cells.instances import Instances
from cellkit.models.training import Plan
from cellkit.models.unet_network import load_start

NARROW = (4, 8, 12, 16)


@pytest.fixture
def given(drawn, tmp_path):
    """What a stamp is made of: network, training images of two kinds, those that choose, plan, teacher, batch."""
    pairs = [(drawn.image(k), drawn.instances[k]) for k in range(4)]
    items = [[train_starter.prepared(pair, tmp_path / "flows")] for pair in pairs[:2]]
    (tmp_path / "teacher").write_bytes(b"one")
    held = {"a": [pairs[2]], "b": [pairs[3]]}
    return [load_start("scratch", 0, NARROW), items, held, Plan(4, eval_every=2), tmp_path / "teacher", 8]


def test_the_same_training_has_the_same_stamp(given):
    assert train_starter.stamp_of(*given) == train_starter.stamp_of(*given)


@pytest.mark.parametrize("what", ["network", "truth", "kinds", "held", "held truth", "plan", "teacher", "batch"])
def test_another_training_has_another_stamp(given, drawn, tmp_path, what):
    before = train_starter.stamp_of(*given)
    _, items, held, _, teacher, _ = given
    image, truth = held["a"][0]
    mirrored = Instances.from_labels(np.ascontiguousarray(truth.paint()[:, ::-1]))
    if what == "network":
        given[0] = load_start("scratch", 1, NARROW)
    elif what == "truth":
        flipped = Instances.from_labels(np.ascontiguousarray(drawn.instances[0].paint()[:, ::-1]))
        items[0] = [train_starter.prepared((drawn.image(0), flipped), tmp_path / "flows")]
    elif what == "kinds":
        given[1] = [[*items[0], *items[1]], []]
    elif what == "held":
        held["a"].append(held["b"][0])
    elif what == "held truth":
        held["a"] = [(image, mirrored)]
    elif what == "plan":
        given[3] = Plan(5, eval_every=2)
    elif what == "teacher":
        teacher.write_bytes(b"two")
    else:
        given[5] = 16
    assert train_starter.stamp_of(*given) != before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "nowhere"], "nowhere has no index.csv"),
        (["--data", "d", "--only-card"], "--base is scratch"),
        (["--data", "d", "--only-card", "--base", "none.safetensors"], "no checkpoint at none.safetensors"),
        (["--data", "d", "--base", "none.pth"], "no checkpoint at none.pth"),
        (["--data", "d", "--teacher", "none.pth"], "no checkpoint at none.pth"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_drawn(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    for name in ("images", "labels"):
        (tmp_path / "d" / name).mkdir(parents=True)
    (tmp_path / "d/index.csv").write_text("id,modality\n")
    monkeypatch.setattr(train_starter, "drawn", lambda *_: pytest.fail("fields are drawn"))
    monkeypatch.setattr(sys, "argv", ["train_starter.py", *options])
    with pytest.raises(SystemExit) as caught:
        train_starter.main()
    assert said in str(caught.value.code)


def test_the_teacher_is_opened_as_a_network(tmp_path, monkeypatch):
    """Not only looked for: one that is no U-Net would be found out after the flows of all images."""
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    for name in ("images", "labels", "index.csv"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(
        sys, "argv", ["train_starter.py", "--data", str(tmp_path), "--teacher", str(tmp_path / "other.pth")]
    )
    with pytest.raises(SystemExit, match="U-Net|diameter"):
        train_starter.main()
