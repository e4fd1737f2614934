"""Fetching weights and competition data: converted, verified, or refused."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
from fetch_cases import QUICK, cyto3, listing, offline, root, server, weights_dir, zipped  # noqa: F401

from cellkit.commands.main import main
from cellkit.config.sections import Config
from cellkit.errors import UserError
from cellkit.fetch import fetch as module
from cellkit.fetch.download import authorization_for, kaggle_user
from cellkit.fetch.fetch import fetch
from cellkit.fetch.find import find_weights, weights_names, with_weights
from cellkit.fetch.registry import REGISTRY
from cellkit.models.weights import load_tensors, read_card

# ---- weights -------------------------------------------------------------------------------------------------------


class TestWeights:
    def test_of_cellpose_become_safetensors_with_a_card(self, offline, weights_dir, cyto3):
        found = fetch("cyto3", given=[cyto3])
        path = find_weights("cyto3")
        assert str(path) == found["weights"] == str(weights_dir / "cyto3.safetensors")
        assert listing(weights_dir) == ["cyto3.json", "cyto3.safetensors", "cyto3.sha256.json"]
        card = read_card(path)
        assert card.backend == "cellpose_unet"
        assert "CC BY-NC" in card.licence
        published, converted = torch.load(cyto3, weights_only=True), load_tensors(path)
        assert all(torch.equal(converted[key], value) for key, value in published.items())

    def test_are_what_a_training_starts_from(self, offline, weights_dir, cyto3):
        from cellkit.models.unet_network import load_start

        fetch("cyto3", given=[cyto3])
        network = load_start(find_weights("cyto3"))
        expected = torch.load(cyto3, weights_only=True)["output.2.weight"]
        assert torch.equal(network.state_dict()["output.2.weight"].cpu(), expected)

    def test_of_cellpose_1_get_the_diameter_they_lack(self, offline, weights_dir, cyto3, tmp_path):
        tensors = torch.load(cyto3, weights_only=True)
        torch.save(
            {f"module.{k}": v for k, v in tensors.items() if not k.startswith("diam_")}, tmp_path / "nucleitorch_0"
        )
        fetch("nuclei", given=[tmp_path / "nucleitorch_0"])
        assert load_tensors(find_weights("nuclei"))["diam_mean"].item() == 17.0

    def test_nuclei_are_where_cellkit_has_them(self, offline, weights_dir, cyto3, tmp_path):
        """The published nuclei model looks at its first channel; converted, it says the same of our second."""
        from cellkit.models.unet_network import CellposeUNet, load_network

        tensors = torch.load(cyto3, weights_only=True)
        generator = torch.Generator().manual_seed(0)
        for key in tensors:  # inputs that differ in every way
            if key.startswith("downsample.down.res_down_0.") and tensors[key].shape == (2,):
                tensors[key] = torch.rand(2, generator=generator) + 0.5
        torch.save(tensors, tmp_path / "nucleitorch_0")
        fetch("nuclei", given=[tmp_path / "nucleitorch_0"])
        ours, card = load_network(find_weights("nuclei"))
        assert card["channels"] == "nuclei"
        theirs = CellposeUNet().eval()
        theirs.load_state_dict(tensors, strict=False)
        nuclei, empty = torch.rand(1, 1, 32, 32, generator=generator), torch.zeros(1, 1, 32, 32)
        with torch.no_grad():
            expected = theirs.features(torch.cat([nuclei, empty], 1))[1][0]
            found = ours.float().cpu().eval().features(torch.cat([empty, nuclei], 1))[1][0]
        assert torch.allclose(found, expected, atol=1e-5) and float(expected.abs().max()) > 0

    def test_not_here(self, weights_dir):  # fault 42
        with pytest.raises(UserError) as caught:
            find_weights("cyto3")
        problem, remedy = str(caught.value).splitlines()
        assert problem == f"the weights 'cyto3' are not here ({weights_dir}/cyto3.safetensors)"
        assert remedy.startswith(
            "run: cellkit fetch cyto3; or by hand: download https://www.cellpose.org/models/cyto3 -> "
        )
        assert "cellkit fetch cyto3 --from FILE" in remedy

    def test_a_misspelt_name(self):
        with pytest.raises(UserError, match=r"no weights 'cyto33' \(did you mean 'cyto3'\?\)"):
            find_weights("cyto33")
        assert {"starter", "cyto3", "cpsam_v2"} <= set(weights_names())

    def test_of_03_none_of_which_validation_images_taught(self, tmp_path):
        def refuse(key):
            raise UserError(f"demo has no '{key}' yet; run 03_finetune_cellpose", "cellkit run CONFIG")

        taught = {"03_finetune_cellpose": {"outputs": {"cellpose_tuned_checkpoint": {}}}}
        config = Config().maskrcnn
        with pytest.raises(
            UserError, match=r"validation images taught all that 03 adapted.*\nset maskrcnn.start: starter"
        ):
            with_weights(config, SimpleNamespace(find=refuse, stages=lambda: taught))
        with pytest.raises(UserError, match="yet; run 03"):
            with_weights(config, SimpleNamespace(find=refuse, stages=dict))

    def test_half_of_them_are_not_them(self, offline, weights_dir, cyto3):
        fetch("cyto3", given=[cyto3])
        path = weights_dir / "cyto3.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match="are not here"):
            find_weights("cyto3")
        assert fetch("cyto3", given=[cyto3])["files"][0]["state"] == "by hand"
        assert find_weights("cyto3") == path

    @pytest.mark.parametrize("how", ["pickle", "torch", "more than tensors", "another network", "text"])
    def test_code_and_other_networks_are_not_taken(self, offline, weights_dir, tmp_path, how):  # fault 40
        class Trap:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "sprung"),))

        path = tmp_path / "cyto3"
        if how == "pickle":
            path.write_bytes(pickle.dumps(Trap()))
        elif how == "torch":
            torch.save({"a": Trap()}, path)
        elif how == "text":
            path.write_bytes(b"<html>sign in</html>")
        else:
            torch.save({"a": torch.zeros(2)} if how == "another network" else {"a": torch.zeros(2), "n": 3}, path)
        with pytest.raises(UserError, match="kept as cyto3.bad"):
            fetch("cyto3", given=[path])
        assert not (tmp_path / "sprung").exists()
        assert listing(weights_dir) == ["cyto3.bad"], "nothing of it is trusted later"

    def test_of_torchvision_start_the_detector(self, offline, weights_dir, tmp_path, monkeypatch):
        body = BytesIO()
        torch.save({"backbone.body.conv1.weight": torch.ones(2, 3)}, body)
        (file,) = REGISTRY["resnet50"].files
        entry = replace(
            REGISTRY["resnet50"], files=(replace(file, sha256_prefix=sha256(body.getvalue()).hexdigest()[:8]),)
        )
        monkeypatch.setitem(REGISTRY, "resnet50", entry)
        (tmp_path / file.file_name).write_bytes(body.getvalue())
        fetch("resnet50", given=[tmp_path])
        path = find_weights("resnet50")
        assert (path.name, read_card(path).backend) == ("resnet50.safetensors", "torchvision")
        assert load_tensors(path)["backbone.body.conv1.weight"].shape == (2, 3)


@pytest.mark.slow
class TestKilled:
    def test_goes_on_after_kill_9(self, server, weights_dir, cyto3):  # fault 39
        body = cyto3.read_bytes()
        server.put("/www.cellpose.org/models/cyto3", body, "slow 0.02", "ok")
        command = [sys.executable, "-m", "cellkit", "fetch", "cyto3", "--json"]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part = weights_dir / "cyto3.part"
        deadline = time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size > 1_000_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        have = part.stat().st_size
        assert 1_000_000 < have < len(body)
        assert part.read_bytes() == body[:have]
        again = subprocess.run(command, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert server.ranges() == ["", f"bytes={have}-", ""], "the last asks for the size model, which is not needed"
        (told,) = json.loads(again.stdout)["files"]
        assert (told["state"], told["sha256"]) == ("fetched", sha256(body).hexdigest())
        assert read_card(find_weights("cyto3")).backend == "cellpose_unet"

    def test_interrupted_is_exit_130_and_resumable(self, server, weights_dir, cyto3):
        server.put("/www.cellpose.org/models/cyto3", cyto3.read_bytes(), "slow 0.02")
        command = [sys.executable, "-m", "cellkit", "fetch", "cyto3"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # what a terminal's Ctrl-C does; started in the background of a script, a program ignores it and so do its children
        running = subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        part = weights_dir / "cyto3.part"
        deadline = time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size > 200_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
        assert (running.returncode, out) == (130, "")
        assert err.splitlines()[-1] == "interrupted"
        assert part.stat().st_size > 200_000
        assert (weights_dir / "cyto3.part.json").is_file()


# ---- Kaggle --------------------------------------------------------------------------------------------------------

SECRET = "0123456789abcdef-secret"

KAGGLE_PATH = "/www.kaggle.com/api/v1/competitions/data/download-all/sartorius-cell-instance-segmentation"

BASIC = "Basic bWU6MDEyMzQ1Njc4OWFiY2RlZi1zZWNyZXQ="  # me:0123456789abcdef-secret


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """No token anywhere; return the folder where kaggle.json would be."""
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "kaggle"))
    (tmp_path / "kaggle").mkdir()
    monkeypatch.setattr(module, "Patience", lambda: QUICK)
    return tmp_path / "kaggle"


class TestKaggle:
    def test_without_a_token(self, server, kaggle, root):
        with pytest.raises(UserError, match=r"no Kaggle token.*kaggle\.json is not there\nmake one at kaggle\.com"):
            fetch("sartorius", root, patience=QUICK)
        assert server.asked == []

    @pytest.mark.parametrize("text", ["{", "[]", '{"username": "me"}', '{"username": "me", "key": 3}'])
    def test_a_file_that_is_no_token(self, server, kaggle, root, text):
        (kaggle / "kaggle.json").write_text(text.replace("3", f'["{SECRET}"]'))
        with pytest.raises(UserError, match="is no Kaggle token") as caught:
            fetch("sartorius", root, patience=QUICK)
        assert SECRET not in str(caught.value)

    def test_a_token_nobody_else_sees(self, server, kaggle, root, capfd):
        (kaggle / "kaggle.json").write_text(json.dumps({"username": "me", "key": SECRET}))
        server.put(KAGGLE_PATH, zipped({"train.csv": b"id\n", "train/a.png": b"x"}), user=BASIC)
        assert main(["fetch", "sartorius", "--to", str(root), "--json"]) == 0
        assert listing(root / "sartorius") == ["train.csv", "train/a.png"]
        out, err = capfd.readouterr()
        kept = b"".join(p.read_bytes() for p in root.rglob("*") if p.is_file())
        for secret in (SECRET, BASIC.split()[1]):
            assert secret not in out + err
            assert secret.encode() not in kept

    def test_from_the_environment(self, server, kaggle, root, monkeypatch):
        monkeypatch.setenv("KAGGLE_USERNAME", "me")
        monkeypatch.setenv("KAGGLE_KEY", SECRET)
        server.put(KAGGLE_PATH, zipped({"train.csv": b"id\n"}), user=BASIC)
        assert fetch("sartorius", root, patience=QUICK)["files"][0]["state"] == "fetched"

    def test_a_token_of_the_new_kind_stands_alone(self, kaggle, monkeypatch):
        (kaggle / "kaggle.json").write_text(json.dumps({"username": "me", "key": "old"}))
        (kaggle / "access_token").write_text(f"{SECRET}\n")
        address = f"https:/{KAGGLE_PATH}"
        assert authorization_for(module.find_entry("sartorius"), address) == f"Bearer {SECRET}"
        monkeypatch.setenv("KAGGLE_API_TOKEN", "other")
        assert kaggle_user() == ("", "other")
        monkeypatch.setenv("KAGGLE_API_TOKEN", f"{SECRET}\r\nHost: elsewhere")
        with pytest.raises(UserError, match="KAGGLE_API_TOKEN is no Kaggle token") as caught:
            kaggle_user()
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize(
        ("status", "words"),
        [
            (401, r"does not know this user and key, or this token\nmake a new token"),
            (403, r"accepted its rules\naccept them at https://www\.kaggle\.com/competitions/sartorius-[a-z-]+/rules"),
            (404, r"HTTP 404"),
        ],
    )
    def test_refused(self, server, kaggle, root, monkeypatch, status, words):
        monkeypatch.setenv("KAGGLE_USERNAME", "me")
        monkeypatch.setenv("KAGGLE_KEY", SECRET)
        server.put(KAGGLE_PATH, b"", f"status {status}")
        with pytest.raises(UserError, match=words) as caught:
            fetch("sartorius", root, patience=QUICK)
        assert SECRET not in str(caught.value)

    def test_a_mirror_is_not_shown_the_token(self, kaggle, root, monkeypatch):
        monkeypatch.setenv("CELLKIT_MIRROR", "https://elsewhere.example")
        monkeypatch.setenv("KAGGLE_USERNAME", "me")
        monkeypatch.setenv("KAGGLE_KEY", SECRET)
        with pytest.raises(UserError, match="comes from Kaggle, not from a mirror"):
            fetch("sartorius", root, patience=QUICK)

    def test_by_hand_needs_no_token(self, offline, kaggle, root, tmp_path):
        (tmp_path / "sartorius-cell-instance-segmentation.zip").write_bytes(zipped({"train.csv": b"id\n"}))
        found = fetch("sartorius", root, [tmp_path / "sartorius-cell-instance-segmentation.zip"])
        assert found["files"][0]["state"] == "by hand"
