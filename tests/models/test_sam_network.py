"""The network of Cellpose-SAM: that of the cellpose package, opened from what was checked."""

from __future__ import annotations

import pickle

import pytest
import torch
from sam_cases import SMALL, small_checkpoint, small_encoder, small_network

from cellkit.errors import UserError
from cellkit.models import weights
from cellkit.models.sam_network import CellposeSAM, Shape, load_network, load_start, shape_of
from cellkit.models.unet_network import CellposeUNet
from cellkit.models.unet_network import load_network as load_unet


@pytest.fixture
def package(monkeypatch):
    """The cellpose package's own network, as small as ours."""
    import cellpose.vit

    monkeypatch.setitem(cellpose.vit.sam_model_registry, "vit_l", small_encoder)
    return cellpose.vit.CPSAM


class TestNetwork:
    def test_is_that_of_the_package(self, package):
        ours, theirs = small_network(), package()
        theirs.load_state_dict(ours.state_dict(), strict=True)
        pictures = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            maps, expected = ours(pictures), theirs.eval()(pictures)[0]
        assert maps.std() > 0.1
        assert torch.allclose(maps, expected, atol=1e-5)

    def test_gradients_are_those_of_the_package(self, package):
        ours, theirs = small_network(), package()
        theirs.load_state_dict(ours.state_dict(), strict=True)
        picture = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
        ours(picture).square().mean().backward()
        theirs.eval()(picture)[0].square().mean().backward()
        expected = {name: value.grad for name, value in theirs.named_parameters() if value.grad is not None}
        found = {name: value.grad for name, value in ours.named_parameters() if value.grad is not None}
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[k], expected[k], atol=1e-6) for k in expected)

    def test_the_default_size_is_the_published_one(self):
        with torch.device("meta"):
            tensors = CellposeSAM().state_dict()
        assert shape_of(tensors) == Shape()
        assert sum(value.numel() for value in tensors.values()) == 304_628_930, "what cellpose.vit.CPSAM() has"

    def test_same_seed_same_weights(self):
        one, same, other = (small_network(seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(one[k], same[k]) for k in one)
        assert not torch.equal(one["out.weight"], other["out.weight"])


class TestOpening:
    def test_ours_and_published(self, tmp_path):
        network = small_network()
        torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, tmp_path / "published")
        ours, config = load_network(small_checkpoint(tmp_path / "ours", diameter_px=12.0), "float32")
        theirs, none = load_network(tmp_path / "published", "float32")
        assert (config, none, ours.shape, theirs.shape) == ({"diameter_px": 12.0}, {}, SMALL, SMALL)
        for opened in (ours, theirs, load_start(tmp_path / "ours.safetensors", precision="float32")):
            assert not opened.training and opened.out.weight.requires_grad and not opened.W2.requires_grad
            assert all(torch.equal(value, network.state_dict()[key]) for key, value in opened.state_dict().items())

    def refused(self, path, words, opened=load_network):
        with pytest.raises(UserError, match=words) as caught:
            opened(path)
        assert len(str(caught.value).splitlines()) == 2

    def test_of_another_network(self, tmp_path):
        torch.save(CellposeUNet(widths=(4, 4, 4, 4)).state_dict(), tmp_path / "cyto3")
        self.refused(tmp_path / "cyto3", "checkpoint of Cellpose 1 to 3\nopen it with backend: cellpose_unet")
        unet = weights.save_checkpoint(tmp_path / "unet.safetensors", {"a": torch.zeros(1)}, "cellpose_unet")
        self.refused(unet, "is a checkpoint of cellpose_unet\nopen it with backend: cellpose_unet")
        torch.save(small_network().state_dict(), tmp_path / "sam")
        self.refused(tmp_path / "sam", "Cellpose-SAM checkpoint\nopen it with backend: cellpose_sam", load_unet)
        sam = small_checkpoint(tmp_path / "ours")
        self.refused(sam, "is a checkpoint of cellpose_sam\nopen it with backend: cellpose_sam", load_unet)
        torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other")
        self.refused(tmp_path / "other", "is no checkpoint of Cellpose 4")

    def test_truncated(self, tmp_path):
        torch.save(small_network().state_dict(), tmp_path / "sam")
        (tmp_path / "sam").write_bytes((tmp_path / "sam").read_bytes()[:-1000])
        self.refused(tmp_path / "sam", "is no checkpoint that can be opened safely")
        ours = small_checkpoint(tmp_path / "ours")
        ours.write_bytes(ours.read_bytes()[:-1000])
        self.refused(ours, "is not the file its card describes")

    def test_tampered(self, tmp_path):
        ours = small_checkpoint(tmp_path / "ours")
        content = bytearray(ours.read_bytes())
        content[-1] ^= 1
        ours.write_bytes(content)
        self.refused(ours, r"sha256 differs")

    @pytest.mark.parametrize("change", ["missing", "other size"])
    def test_not_whole(self, tmp_path, change):
        tensors = small_network().state_dict()
        removed = tensors.pop("encoder.blocks.1.mlp.lin2.weight")
        if change == "other size":
            tensors["encoder.blocks.1.mlp.lin2.weight"] = removed[:, :-1]
        torch.save(tensors, tmp_path / "sam")
        counts = r"\(1 tensors missing, 0" if change == "missing" else r"\(0 tensors missing, 1 of another size"
        self.refused(tmp_path / "sam", counts)

    def test_a_program_in_a_checkpoint_is_not_run(self, tmp_path):
        class Program:
            def __reduce__(self):
                return open, (str(tmp_path / "was here"), "w")

        with open(tmp_path / "sam", "wb") as file:
            pickle.dump({"W2": Program()}, file)
        self.refused(tmp_path / "sam", "cannot|can be opened safely")
        torch.save({**small_network().state_dict(), "W3": Program()}, tmp_path / "sam.pth")
        self.refused(tmp_path / "sam.pth", "can be opened safely")
        assert not (tmp_path / "was here").exists()
