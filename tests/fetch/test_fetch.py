"""Fetching: verified or not there, done once, done by hand where there is no network; the user's token goes nowhere else."""

import json
import os
import pickle
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest
import torch
from loopback import Server

from cellkit.commands.main import main
from cellkit.errors import UserError
from cellkit.fetch import fetch as module
from cellkit.fetch.download import Patience, authorization_for, kaggle_user
from cellkit.fetch.fetch import fetch, fetched_weights, list_entries
from cellkit.fetch.find import find_weights, weights_names
from cellkit.fetch.registry import REGISTRY, Entry, RemoteFile
from cellkit.files import read_json
from cellkit.models.weights import load_tensors, read_card

QUICK = Patience(timeout_s=5.0, tries=2, backoff_s=0.01)
DETAILS = {"licence": "CC0-1.0", "paper": "A. Author, 2026", "page": "https://a.example"}
IMAGES = {"images/a.tif": b"one", "images/b.tif": b"two"}


def zipped(files: dict[str, bytes]) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def entry_of(*files: RemoteFile, **how) -> dict[str, Entry]:
    return {"set": Entry("set", how.pop("kind", "data"), "a set", files, **{**DETAILS, **how})}


IMAGES_ZIP = zipped(IMAGES)
IMAGES_FILE = RemoteFile("https://a.example/images.zip", "set/images", unpack=True)
TABLE_FILE = RemoteFile("https://a.example/t.csv", "set/t.csv")


@pytest.fixture
def server(monkeypatch):
    with Server() as running:
        monkeypatch.setenv("CELLKIT_MIRROR", running.url)
        yield running


@pytest.fixture
def offline(monkeypatch):
    """A server that has gone: every connection is refused."""
    with Server() as gone:
        pass
    monkeypatch.setenv("CELLKIT_MIRROR", gone.url)


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data"


def get(root: Path, *files: RemoteFile, given=(), **how):
    return fetch("set", root, given, QUICK, entry_of(*files, **how))


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


class TestFirstTime:
    def test_an_archive(self, server, root, capsys):
        server.put("/a.example/images.zip", IMAGES_ZIP)
        found = get(root, IMAGES_FILE)
        assert listing(root) == ["set/images.sha256.json", "set/images/a.tif", "set/images/b.tif"]
        assert (root / "set/images/a.tif").read_bytes() == b"one"
        record = read_json(root / "set/images.sha256.json")
        digest = sha256(IMAGES_ZIP).hexdigest()
        assert (record["sha256"], record["url"]) == (digest, "https://a.example/images.zip")
        assert (record["members"], record["trust"]) == ({"a.tif": 3, "b.tif": 3}, "first download")
        assert [(f["state"], f["sha256"]) for f in found["files"]] == [("fetched", digest)]
        said = capsys.readouterr().err
        assert "licence: CC0-1.0" in said
        assert (
            f"no sha256 is published for it. This one is trusted, and kept in {root}/set/images.sha256.json: {digest}"
            in said
        )

    def test_a_published_sha256_is_nothing_to_worry_about(self, server, root, capsys):
        server.put("/a.example/images.zip", IMAGES_ZIP)
        file = replace(IMAGES_FILE, sha256=sha256(IMAGES_ZIP).hexdigest(), size_bytes=len(IMAGES_ZIP))
        assert get(root, file)["files"][0]["trust"] == "published"
        assert "trusted" not in capsys.readouterr().err

    def test_several_files(self, server, root):
        server.put("/a.example/images.zip", IMAGES_ZIP)
        server.put("/a.example/t.csv", b"id,n\na,1\n")
        found = get(root, IMAGES_FILE, TABLE_FILE)
        assert [file["state"] for file in found["files"]] == ["fetched", "fetched"]
        assert found["weights"] is None
        assert (root / "set/t.csv").read_bytes() == b"id,n\na,1\n"

    def test_certificates_are_verified_as_before(self, server, root):  # fault 56
        before = ssl._create_default_https_context
        self.test_an_archive_quietly(server, root)
        assert ssl._create_default_https_context is before is ssl.create_default_context

    def test_an_archive_quietly(self, server, root):
        server.put("/a.example/images.zip", IMAGES_ZIP)
        get(root, IMAGES_FILE)


class TestAgain:
    def test_what_is_there_is_left_alone(self, server, root):
        server.put("/a.example/images.zip", IMAGES_ZIP)
        get(root, IMAGES_FILE)
        before = (root / "set/images/a.tif").stat().st_mtime_ns
        assert get(root, IMAGES_FILE)["files"][0]["state"] == "there"
        assert len(server.asked) == 1
        assert (root / "set/images/a.tif").stat().st_mtime_ns == before

    def test_what_is_missing_comes_back_and_nothing_is_deleted(self, server, root, capsys):
        server.put("/a.example/images.zip", IMAGES_ZIP)
        get(root, IMAGES_FILE)
        (root / "set/images/a.tif").unlink()
        (root / "set/images/mine.txt").write_text("notes")
        assert get(root, IMAGES_FILE)["files"][0]["state"] == "fetched"
        assert (root / "set/images/a.tif").read_bytes() == b"one"
        assert (root / "set/images.before-1/mine.txt").read_text() == "notes"
        assert f"it is now {root}/set/images.before-1" in capsys.readouterr().err

    def test_a_folder_of_other_origin_is_set_aside(self, server, root):
        (root / "set/images").mkdir(parents=True)
        (root / "set/images/c.tif").write_bytes(b"mine")
        server.put("/a.example/images.zip", IMAGES_ZIP)
        get(root, IMAGES_FILE)
        assert (root / "set/images.before-1/c.tif").read_bytes() == b"mine"

    def test_another_file_than_the_first_time(self, server, root):  # fault 43
        server.put("/a.example/t.csv", b"id\n1\n")
        get(root, TABLE_FILE)
        (root / "set/t.csv").unlink()
        server.put("/a.example/t.csv", b"id\n2\n", etag='"2"')
        with pytest.raises(UserError, match=r"the first download had [0-9a-f]{64}") as caught:
            get(root, TABLE_FILE)
        assert "t.csv.bad" in str(caught.value)
        assert f"delete {root}/set/t.csv.sha256.json and fetch again" in str(caught.value)
        assert not (root / "set/t.csv").exists()

    def test_a_damaged_side_file_vouches_for_nothing(self, server, root):
        server.put("/a.example/t.csv", b"id\n1\n")
        get(root, TABLE_FILE)
        side = root / "set/t.csv.sha256.json"
        for text in ("{", "{}", '{"sha256": "ab", "size_bytes": 5}'):
            side.write_text(text)
            with pytest.raises(UserError, match=r"t\.csv\.sha256\.json is damaged\ndelete it and fetch again"):
                get(root, TABLE_FILE)


class TestWrongBytes:
    def test_other_than_published(self, server, root):  # fault 43
        server.put("/a.example/images.zip", IMAGES_ZIP)
        with pytest.raises(UserError, match=r"published is 0{64}; the file is kept as images\.zip\.bad") as caught:
            get(root, replace(IMAGES_FILE, sha256="0" * 64))
        assert "https://a.example/images.zip" in str(caught.value)
        assert listing(root) == ["set/images.zip.bad"]

    def test_other_than_the_first_digits_published(self, server, root):
        body = b"id\n1\n"
        server.put("/a.example/t.csv", body)
        with pytest.raises(UserError, match=r"published is 00000000\.\.\."):
            get(root, replace(TABLE_FILE, sha256_prefix="00000000"))
        found = get(root, replace(TABLE_FILE, sha256_prefix=sha256(body).hexdigest()[:8]))
        assert found["files"][0]["trust"] == "first digits published"

    def test_a_shorter_file_that_says_so(self, server, root):
        server.put("/a.example/images.zip", IMAGES_ZIP, "less 30")
        with pytest.raises(UserError, match="published is"):
            get(root, replace(IMAGES_FILE, sha256=sha256(IMAGES_ZIP).hexdigest()))
        with pytest.raises(UserError, match=r"no whole archive.*kept as images\.zip\.bad"):
            get(root, IMAGES_FILE)
        assert not (root / "set/images.sha256.json").exists(), "what cannot be opened is not trusted"
        assert listing(root) == ["set/images.zip.bad"]

    def test_a_stale_part_is_given_up_once(self, server, root, capsys):
        """The server mixes two versions under one ETag; only the sha256 tells."""
        file = replace(IMAGES_FILE, sha256=sha256(IMAGES_ZIP).hexdigest())
        server.put("/a.example/images.zip", bytes(len(IMAGES_ZIP)), "break 100", "status 503")
        with pytest.raises(UserError, match="no way to"):
            get(root, file)
        assert (root / "set/images.zip.part").stat().st_size == 100
        server.put("/a.example/images.zip", IMAGES_ZIP)
        get(root, file)
        assert "once more from the beginning" in capsys.readouterr().err
        assert server.ranges()[-2:] == ["bytes=100-", ""]

    @pytest.mark.parametrize("body", [b"", b"<html>sign in</html>", b'{"images": [1, 2'])
    def test_a_json_file_that_is_none(self, server, root, body):
        server.put("/a.example/t.json", body)
        with pytest.raises(UserError, match=r"no whole json file; the file is kept as t\.json\.bad"):
            get(root, RemoteFile("https://a.example/t.json", "set/t.json"))
        assert listing(root) == ["set/t.json.bad"]

    def test_a_refused_archive_touches_nothing(self, server, root):  # fault 44
        server.put("/a.example/images.zip", IMAGES_ZIP)
        get(root, IMAGES_FILE)
        (root / "set/images/a.tif").unlink()
        (root / "set/images.sha256.json").unlink()
        server.put("/a.example/images.zip", zipped({"../../evil.tif": b"x"}), etag='"2"')
        with pytest.raises(UserError, match="would be written outside the folder"):
            get(root, IMAGES_FILE)
        assert listing(root.parent) == ["data/set/images.zip.bad", "data/set/images/b.tif"]


class TestNoNetwork:
    def test_says_what_to_carry_here(self, offline, root):  # fault 42
        file = replace(IMAGES_FILE, sha256="ab" * 32)
        with pytest.raises(UserError) as caught:
            get(root, file)
        problem, remedy = str(caught.value).splitlines()
        assert problem.startswith("set: no way to 127.0.0.1: no connection")
        assert f"https://a.example/images.zip -> {root}/set/images.zip (sha256 {'ab' * 32})" in remedy
        assert remedy.endswith(f"then run: cellkit fetch set --to {root} --from FILE")

    def test_a_file_carried_here(self, offline, root, tmp_path):
        carried = tmp_path / "from the stick.zip"
        carried.write_bytes(IMAGES_ZIP)
        found = get(root, IMAGES_FILE, given=[carried])
        assert found["files"][0]["state"] == "by hand"
        assert (root / "set/images/b.tif").read_bytes() == b"two"
        assert carried.read_bytes() == IMAGES_ZIP, "the file given stays as it is"

    def test_a_file_put_in_its_place(self, offline, root):
        (root / "set").mkdir(parents=True)
        (root / "set/images.zip").write_bytes(IMAGES_ZIP)
        assert get(root, IMAGES_FILE)["files"][0]["state"] == "by hand"
        assert (root / "set/images/b.tif").read_bytes() == b"two"

    def test_the_wrong_file_carried_here(self, offline, root, tmp_path):
        carried = tmp_path / "images.zip"
        carried.write_bytes(IMAGES_ZIP)
        with pytest.raises(UserError, match=re.escape(f"{carried} has sha256")):
            get(root, replace(IMAGES_FILE, sha256="ab" * 32), given=[carried])
        with pytest.raises(UserError, match="bytes, 10 are known"):
            get(root, replace(IMAGES_FILE, size_bytes=10), given=[carried])
        assert carried.is_file()
        assert listing(root) == []

    def test_a_folder_with_some_of_the_files(self, offline, root, tmp_path):
        (tmp_path / "stick").mkdir()
        (tmp_path / "stick/images.zip").write_bytes(IMAGES_ZIP)
        with pytest.raises(UserError, match="1 file is here, 1 not yet") as caught:
            get(root, IMAGES_FILE, TABLE_FILE, given=[tmp_path / "stick"])
        assert "https://a.example/t.csv" in str(caught.value)
        assert "images.zip" not in str(caught.value)
        (tmp_path / "stick/t.csv").write_bytes(b"id\n1\n")
        found = get(root, IMAGES_FILE, TABLE_FILE, given=[tmp_path / "stick/t.csv"])
        assert [file["state"] for file in found["files"]] == ["there", "by hand"]

    def test_files_that_are_none_of_it(self, offline, root, tmp_path):
        (tmp_path / "x.csv").write_bytes(b"x")
        with pytest.raises(UserError, match=r"none of its files is in .*\nit is: images\.zip, t\.csv"):
            get(root, IMAGES_FILE, TABLE_FILE, given=[tmp_path / "x.csv"])
        with pytest.raises(UserError, match="no file at"):
            get(root, IMAGES_FILE, given=[tmp_path / "none.zip"])

    def test_a_server_without_the_file(self, server, root):
        with pytest.raises(UserError, match=r"127\.0\.0\.1 HTTP 404.*\n.*--from FILE"):
            get(root, IMAGES_FILE)


class TestTwoAtOnce:
    def test_one_waits_for_the_other(self, server, root):
        server.put("/a.example/images.zip", IMAGES_ZIP, "slow 0.2")
        done, failed = [], []

        def run():
            try:
                done.append(get(root, IMAGES_FILE)["files"][0]["state"])
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert sorted(done) == ["fetched", "there", "there"]
        assert len(server.asked) == 1


# ---- weights -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cyto3(tmp_path_factory) -> Path:
    """A checkpoint as Cellpose 3 saves one, with random numbers."""
    from cellkit.models.unet_network import CellposeUNet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("published") / "cyto3"
    torch.save(CellposeUNet().state_dict(), path)
    return path


@pytest.fixture
def weights_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CELLKIT_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


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

    def test_as_they_came_and_verified_each_time(self, offline, weights_dir, tmp_path, monkeypatch):
        (tmp_path / "cpsam_v2").write_bytes(b"weights")
        (file,) = REGISTRY["cpsam_v2"].files
        known = replace(file, size_bytes=7, sha256=sha256(b"weights").hexdigest())
        monkeypatch.setitem(REGISTRY, "cpsam_v2", replace(REGISTRY["cpsam_v2"], files=(known,)))
        fetch("cpsam_v2", given=[tmp_path / "cpsam_v2"])
        assert find_weights("cpsam_v2") == fetched_weights("cpsam_v2") == weights_dir / "cpsam_v2"
        (weights_dir / "cpsam_v2").write_bytes(b"Weights")
        with pytest.raises(UserError, match="sha256 differs"):
            find_weights("cpsam_v2")


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


# ---- the command ---------------------------------------------------------------------------------------------------
class TestCommand:
    def test_list(self, capfd, root):
        assert main(["fetch", "--list", "--to", str(root)]) == 0
        out = capfd.readouterr().out
        assert all(name in out for name in REGISTRY)
        assert main(["fetch", "--list", "--json", "--to", str(root)]) == 0
        told = json.loads(capfd.readouterr().out)["entries"]
        assert told == list_entries(root)
        assert [row["name"] for row in told] == list(REGISTRY)
        assert not any(row["here"] for row in told)
        assert not root.exists(), "looking changes nothing"

    def test_json_alone_on_stdout(self, offline, capfd, weights_dir, cyto3):
        assert main(["fetch", "cyto3", "--from", str(cyto3), "--json"]) == 0
        out, err = capfd.readouterr()
        told = json.loads(out)
        assert (told["name"], told["weights"]) == ("cyto3", str(weights_dir / "cyto3.safetensors"))
        assert "licence: trained on data under CC BY-NC" in err
        assert main(["fetch", "cyto3"]) == 0
        out, err = capfd.readouterr()
        assert out.startswith("there ")
        assert "base: cyto3" in out
        assert main(["fetch", "--list", "--json"]) == 0
        here = {row["name"] for row in json.loads(capfd.readouterr().out)["entries"] if row["here"]}
        assert here == {"cyto3"}

    @pytest.mark.parametrize(
        ("arguments", "problem", "remedy"),
        [
            ([], "NAME is missing", "cellkit fetch --list"),
            (["cyto33"], "nothing called 'cyto33' can be fetched (did you mean 'cyto3'?)", "names: bbbc038"),
            (["bbbc039", "--from", "none.zip"], "no file at none.zip", "give the path"),
        ],
    )
    def test_two_lines_and_exit_2(self, capfd, tmp_path, monkeypatch, arguments, problem, remedy):
        monkeypatch.chdir(tmp_path)
        assert main(["fetch", *arguments]) == 2
        out, err = capfd.readouterr()
        first, second = err.splitlines()[-2:]
        assert out == ""
        assert problem in first
        assert remedy in second

    def test_offline_names_every_file(self, offline, capfd, root, monkeypatch):
        monkeypatch.setattr("cellkit.fetch.download.time.sleep", lambda _: None)
        assert main(["fetch", "bbbc039", "--to", str(root)]) == 2
        problem, remedy = capfd.readouterr().err.splitlines()[-2:]
        assert "bbbc039: no way to" in problem
        for file in REGISTRY["bbbc039"].files:
            assert f"{file.url} -> {root / file.place} (sha256 {file.sha256})" in remedy

    def test_a_folder_that_cannot_be_written(self, offline, capfd, tmp_path):  # fault 51
        (tmp_path / "file").write_text("")
        assert main(["fetch", "bbbc039", "--to", str(tmp_path / "file")]) == 2
        assert "file" in capfd.readouterr().err.splitlines()[-2]

    def test_a_real_set_that_is_not_itself(self, server, capfd, root):
        """The name is that of a set with published values; what comes is something else of the same length."""
        server.put("/data.broadinstitute.org/bbbc/BBBC039/images.zip", bytes(77_915_748))
        assert main(["fetch", "bbbc039", "--to", str(root)]) == 2
        assert "published is 6f30a5d4" in capfd.readouterr().err
        assert listing(root) == ["bbbc039/images.zip.bad"]

    def test_nothing_heavy_is_imported_to_look(self):
        code = "from cellkit.commands.main import main; main(['fetch', '--list']); import sys; print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False"
