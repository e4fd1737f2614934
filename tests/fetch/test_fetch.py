"""Fetching: verified or not there, done once, done by hand where there is no network; the user's token goes nowhere else."""

import json
import re
import ssl
import subprocess
import sys
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from fetch_cases import QUICK, cyto3, listing, offline, root, server, weights_dir, zipped  # noqa: F401

from cellkit.commands.main import main
from cellkit.config.reading import load_config
from cellkit.errors import UserError
from cellkit.fetch.fetch import fetch, list_entries, use_of
from cellkit.fetch.find import find_weights
from cellkit.fetch.registry import REGISTRY, Entry, RemoteFile
from cellkit.files import read_json
from cellkit.settings import weights_fields

DETAILS = {"licence": "CC0-1.0", "paper": "A. Author, 2026", "page": "https://a.example"}

IMAGES = {"images/a.tif": b"one", "images/b.tif": b"two"}


def entry_of(*files: RemoteFile, **how) -> dict[str, Entry]:
    return {"set": Entry("set", how.pop("kind", "data"), "a set", files, **{**DETAILS, **how})}


IMAGES_ZIP = zipped(IMAGES)

IMAGES_FILE = RemoteFile("https://a.example/images.zip", "set/images", unpack=True)

TABLE_FILE = RemoteFile("https://a.example/t.csv", "set/t.csv")


def get(root: Path, *files: RemoteFile, given=(), **how):
    return fetch("set", root, given, QUICK, entry_of(*files, **how))


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
        assert f"finetune.base: cyto3, or {weights_dir / 'cyto3.safetensors'}" in out
        assert main(["fetch", "--list", "--json"]) == 0
        here = {row["name"] for row in json.loads(capfd.readouterr().out)["entries"] if row["here"]}
        assert here == {"cyto3"}

    def test_a_name_is_no_use_where_it_finds_nothing(self, offline, capfd, weights_dir, cyto3, tmp_path, monkeypatch):
        assert main(["fetch", "cyto3", "--from", str(cyto3), "--to", str(tmp_path / "own")]) == 0
        path = tmp_path / "own/cyto3.safetensors"
        assert f"finetune.base: {path}, or with CELLKIT_WEIGHTS={path.parent} cyto3" in capfd.readouterr().out
        monkeypatch.setenv("CELLKIT_WEIGHTS", str(path.parent))
        assert find_weights("cyto3") == path

    @pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.kind == "weights"])
    def test_the_settings_that_take_weights_are_such(self, weights_dir, tmp_path, name):
        entry = REGISTRY[name]
        told = dict(part.split(": ") for part in use_of(entry, weights_dir).split("; "))
        told = {key: value.split(", or ")[0] for key, value in told.items()}
        (tmp_path / "c.yaml").write_text("classes: [a]\nconvert: {source: folder, channels: {nuclei: 0}}\n")
        cfg = load_config(tmp_path / "c.yaml", told)
        section, key = next(one for one, value in told.items() if value == name).split(".")
        own = getattr(cfg, section)
        assert getattr(own, key) == name and entry.backend in weights_fields(type(own)).get(key, [own.backend])

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
