"""bfloat16 where the processor has it, float32 elsewhere: the same cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backend_cases import config_of

from cellkit import machine
from cellkit.cells.instances import Instances
from cellkit.errors import UserError
from cellkit.fetch.find import find_weights
from cellkit.machine import arithmetic
from cellkit.models import cellpose_unet as unet
from cellkit.models import maskrcnn_torchvision as maskrcnn
from cellkit.models import unet_maps, weights
from cellkit.models.averaging import Average
from cellkit.models.shared import inputs
from cellkit.models.training_state import History, State
from cellkit.models.unet_network import load_network
from cellkit.scores.iou import overlaps
from cellkit.scores.matching import count


def cells_in(precision: str, image: np.ndarray) -> Instances:
    return next(unet.load(find_weights("starter"), unet.Settings(diameter_px=30.0, precision=precision))([image]))


def matched(one: Instances, other: Instances) -> float:
    """Return F1 at IoU 0.5."""
    return 2 * count(overlaps(one, other), [0.5]).tp[0] / (len(one) + len(other))


def test_the_same_cells_in_either_arithmetic_and_on_two_threads(drawn):
    told = {precision: cells_in(precision, drawn.image(0)) for precision in ("float32", "bfloat16")}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    two = cells_in("float32", drawn.image(0))
    torch.set_num_threads(threads)
    for other in (told["bfloat16"], two):
        assert matched(told["float32"], other) >= 0.99


@pytest.mark.parametrize("has", [True, False])
def test_float32_is_float32_and_auto_what_the_processor_has(drawn, monkeypatch, capsys, has):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
    machine._say_slow.cache_clear()
    planes, maps = torch.from_numpy(inputs.two_channels(drawn.image(0)[:64, :64]))[None], {}
    for precision in ("auto", "float32", "bfloat16"):
        network, _ = load_network(find_weights("starter"), precision)
        with torch.no_grad():
            plain = network(planes.contiguous(memory_format=torch.channels_last))[0].numpy()
        maps[precision] = unet_maps.forward(network, planes[0].numpy())
        assert np.array_equal(maps[precision], plain) is (str(network.arithmetic) == "float32 on cpu")
    assert np.array_equal(maps["auto"], maps["bfloat16" if has else "float32"])
    assert capsys.readouterr().err.count("has to imitate") == (not has), "said once, where it is slow"


def test_the_precision_of_a_training_is_in_the_card_and_its_predictions(drawn, tmp_path):
    config = config_of("cellpose_unet", base=str(find_weights("starter")), steps=1, eval_every=1, precision="float32")
    checkpoint = unet.train(drawn.subset([0]), drawn.select("val").subset([0]), config, tmp_path)
    card = weights.read_card(checkpoint)
    assert card.config["precision"] == "float32" and card.metrics["arithmetic"] == "float32 on cpu"
    assert str(load_network(checkpoint)[0].arithmetic) == "float32 on cpu"


def test_a_training_under_way_does_not_go_on_in_another_number_type_and_a_finished_one_stays(tmp_path):
    def state(text: str) -> State:
        network = torch.nn.Linear(2, 2)
        network.arithmetic = text
        adam = torch.optim.AdamW(network.parameters())
        return State(network, adam, list(network.parameters()), Average(network, 0), tmp_path, "a")

    state("bfloat16 on cpu").save(3, History(), [])
    assert state("bfloat16 on cpu").resume()[0] == 3 and state("float32 on cpu").resume()[0] == 0
    state("bfloat16 on cpu").save(3, History(stopped="steps done"), [])
    assert state("float32 on cpu").resume()[0] == 3, "nothing is mixed"


def test_bfloat16_is_refused_where_it_would_not_be_meant():
    config = config_of("maskrcnn_torchvision", backbone="resnet50_fpn_v2", start="scratch", precision="bfloat16")
    with pytest.raises(UserError, match="resnet50_fpn_v2 computes in float32"):
        maskrcnn.check(config)


@pytest.mark.skipif(arithmetic().number_type != "bfloat16", reason="bfloat16 is imitated here: see the test before")
def test_bfloat16_of_this_processor_finds_the_cells_of_float32(drawn):
    pairs = [[cells_in(precision, image) for precision in ("float32", "bfloat16")] for image in drawn.images()]
    assert np.mean([matched(*pair) for pair in pairs if len(pair[0])]) >= 0.99
