"""The four ways to adapt Cellpose-SAM: what each trains, what a step goes through, and that LoRA leaves a plain network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sam_cases import SMALL, small_network

from cellkit.errors import UserError
from cellkit.models.sam_ways import dropped, forward, merge_lora, train_by, trained_numbers

CROPS = torch.from_numpy(np.random.default_rng(0).random((3, 3, SMALL.tile_px, SMALL.tile_px), np.float32))


def trained(network) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def step(network, **how) -> dict[str, torch.Tensor]:
    network.train()
    forward(network, CROPS, **how).square().mean().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [True, False])
def test_on_the_way_to_a_gradient_the_maps_are_those_of_the_network(recompute):
    network = small_network()
    with torch.no_grad():
        wanted = network(CROPS)
    found = forward(network, CROPS, recompute=recompute)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("way", "frozen", "wanted"),
    [("head", 2, {"encoder.neck", "out"}), ("late", 1, {"encoder.neck", "out", "encoder.blocks.1"}),
     ("all", 0, {"encoder.neck", "out", "encoder.blocks", "encoder.pos_embed"})],
)  # fmt: skip
def test_each_way_trains_its_weights_and_every_one_of_them(way, frozen, wanted):
    network = small_network()
    assert train_by(network, way, 1, 4, 0.1, 0) == frozen
    names = trained(network)
    assert all(any(name.startswith(start) for start in wanted) for name in names)
    assert all(any(name.startswith(start) for name in names) for start in wanted)
    gradients = step(network, frozen=frozen)
    assert set(gradients) == names and all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_what_is_frozen_changes_no_gradient_of_the_rest():
    network = small_network()
    train_by(network, "all", 1, 4, 0.1, 0)
    every = step(network)
    network.zero_grad()
    frozen = train_by(network, "late", 1, 4, 0.1, 0)
    for name, gradient in step(network, frozen=frozen).items():
        torch.testing.assert_close(gradient, every[name], rtol=1e-4, atol=1e-7)


def test_lora_trains_little_begins_as_the_base_and_merges_to_a_plain_network():
    pytest.importorskip("peft")
    base, network = small_network(), small_network()
    names = set(network.state_dict())
    assert train_by(network, "lora", 1, 4, 0.1, 0) == 0
    again = small_network()
    train_by(again, "lora", 1, 4, 0.1, 0)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))
    assert trained(network) == {name for name, _ in network.named_parameters() if "lora_" in name}
    few, whole = trained_numbers(network)
    assert few < 0.1 * whole
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(CROPS), base(CROPS))
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        step(network)
        optimizer.step()
    network.eval()
    with torch.no_grad():
        beside = network(CROPS)
        assert (beside - base(CROPS)).abs().max() > 1e-3, "it has learnt something"
        merge_lora(network)
        torch.testing.assert_close(network(CROPS), beside, rtol=1e-4, atol=1e-5)
    assert set(network.state_dict()) == names
    changed = {n for n, t in network.state_dict().items() if not torch.equal(t, base.state_dict()[n])}
    assert changed == {f"encoder.blocks.{k}.attn.qkv.weight" for k in range(SMALL.depth)}


def test_a_block_that_is_left_out_passes_its_crop_on_and_no_other():
    network = small_network()
    out = np.array([[False, True], [False, False], [True, True]])
    with torch.no_grad():
        found = forward(network, CROPS, left_out=out)
        torch.testing.assert_close(found[1:2], forward(network, CROPS[1:2]), rtol=1e-4, atol=1e-5)
        wanted = forward(network, CROPS[:1], left_out=out[:1])
        torch.testing.assert_close(found[:1], wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[:1], forward(network, CROPS[:1]), atol=1e-4)


def test_a_tile_keeps_its_place_and_its_distances():
    """What two tokens of a tile are to each other is what they are in the whole: with blocks left out nothing else matters."""
    network, half = small_network(), SMALL.tile_px // 2
    both = np.ones((3, 2), bool)
    with torch.no_grad():
        whole = network.encoder.blocks[0].attn
        x = torch.randn(1, 4, 4, SMALL.width)
        tile = whole(x)
        side, whole.side = whole.side, 4
        stretched = whole(x)
        whole.side = side
        assert not torch.allclose(tile, stretched, atol=1e-6), "a table that is stretched to the tile is another one"
        network.encoder.neck[2] = torch.nn.Identity()  # the one convolution that sees its neighbours
        wanted = forward(network, CROPS, left_out=both)[..., half:, half:]
        found = forward(network, CROPS[..., half:, half:], left_out=both, corner=(half, half))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_blocks_are_left_out_as_the_step_says_in_parts_or_not():
    drawn = dropped(3, 0, 8, 24, 0.4)
    assert np.array_equal(drawn, dropped(3, 0, 8, 24, 0.4)) and not np.array_equal(drawn, dropped(4, 0, 8, 24, 0.4))
    assert not dropped(3, 0, 8, 24, 0.0).any()


def test_more_late_blocks_than_there_are_is_refused():
    with pytest.raises(UserError, match="finetune.late_blocks is 3, the network has 2 blocks\nset fewer, or way: all"):
        train_by(small_network(), "late", 3, 4, 0.1, 0)
