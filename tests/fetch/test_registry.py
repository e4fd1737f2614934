"""The registry: https everywhere, a licence and a paper for everything, no two files in one place, addresses as published."""

import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path, PurePosixPath

import pytest

from cellkit.errors import UserError
from cellkit.fetch.registry import REGISTRY, RemoteFile, find_entry, folder_of

ENTRIES = list(REGISTRY.values())
FILES = [(entry, file) for entry in ENTRIES for file in entry.files]


def named(value) -> str:
    return getattr(value, "name", None) or getattr(value, "file_name", "")


@pytest.mark.parametrize("entry", ENTRIES, ids=named)
def test_every_entry_says_what_it_is(entry):
    assert entry.name == re.sub(r"[^a-z0-9_-]", "", entry.name)
    assert entry.kind in ("data", "weights")
    assert all(getattr(entry, key).strip() for key in ("about", "licence", "paper", "page"))
    assert entry.page.startswith("https://")
    assert entry.files
    assert (entry.kind == "weights") == bool(entry.backend)
    with pytest.raises(FrozenInstanceError):
        entry.name = "x"


@pytest.mark.parametrize(("entry", "file"), FILES, ids=named)
def test_every_file_is_https_and_checked(entry, file):
    assert file.url.startswith("https://")
    assert file.sha256 == "" or re.fullmatch("[0-9a-f]{64}", file.sha256)
    assert re.fullmatch("[0-9a-f]{0,63}", file.sha256_prefix)
    assert file.sha256 == "" or file.sha256.startswith(file.sha256_prefix)
    assert file.size_bytes is None or file.size_bytes > 0
    for path in (PurePosixPath(file.target), PurePosixPath(file.place)):
        assert not path.is_absolute()
        assert ".." not in path.parts
    assert file.unpack == (file.place != file.target)
    assert not file.unpack or file.file_name.endswith((".zip", ".tar.gz"))


@pytest.mark.parametrize("kind", ["data", "weights"])
def test_no_two_files_share_a_place(kind):
    files = [file for entry, file in FILES if entry.kind == kind]
    taken = [path for file in files for path in {file.target, file.place, f"{file.target}.sha256.json"}]
    taken += [
        f"{e.name}{suffix}" for e in ENTRIES if e.kind == kind and e.converted for suffix in (".safetensors", ".json")
    ]
    assert len({path.casefold() for path in taken}) == len(taken)
    targets = {PurePosixPath(file.target) for file in files}
    assert not [target for target in targets if targets & set(target.parents)], "a folder is replaced as a whole"
    for entry in ENTRIES:
        names = [file.file_name for file in entry.files]
        assert len(set(names)) == len(names), "files carried by hand are known by their names"


def test_what_the_brief_asks_for_is_there():
    assert {"bbbc038", "bbbc039", "livecell", "sartorius"} <= {e.name for e in ENTRIES if e.kind == "data"}
    assert {"cpsam_v2", "cyto3", "cyto2", "nuclei", "maskrcnn_resnet50_fpn_v2"} <= {
        e.name for e in ENTRIES if e.kind == "weights"
    }
    assert all("CC BY-NC" in REGISTRY[name].licence for name in ("livecell", "cyto3", "cyto2", "nuclei", "cpsam_v2"))


def test_addresses_of_torchvision_are_its_own():
    from torchvision.models import ResNet50_Weights
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights

    urls = {
        "maskrcnn_resnet50_fpn_v2": MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.url,
        "resnet50": ResNet50_Weights.IMAGENET1K_V2.url,
    }
    for name, url in urls.items():
        (file,) = REGISTRY[name].files
        assert file.url == url
        assert file.sha256_prefix == re.search(r"-([0-9a-f]{8})\.pth$", url)[1]


def test_addresses_of_cellpose_4_are_its_own_of_one_revision():
    from importlib.util import find_spec

    source = (Path(find_spec("cellpose").origin).parent / "models.py").read_text(encoding="utf-8")
    base = re.search(r'^_MODEL_URL = "([^"]+)"', source, re.MULTILINE)[1]
    names = re.findall(r'"([^"]+)"', re.search(r"^MODEL_NAMES = \[(.*?)\]", source, re.MULTILINE)[1])
    ours = {entry.name: entry.files for entry in ENTRIES if entry.backend == "cellpose_sam"}
    assert set(ours) == set(names) == {"cpsam_v2", "cpsam", "cpdino", "cpdino-vitb"}
    revisions = {file.url.removesuffix(f"/{name}").rpartition("/")[2] for name, (file,) in ours.items()}
    (revision,) = revisions
    assert re.fullmatch("[0-9a-f]{40}", revision), "a revision, not a branch"
    for name, (file,) in ours.items():
        assert file.url == base.replace("/main/", f"/{revision}/") + name
        assert len(file.sha256) == 64 and file.size_bytes


def test_place_of_a_download():
    file = RemoteFile("https://a.example/x/images.zip", "set/images", unpack=True)
    assert (file.file_name, file.place) == ("images.zip", "set/images.zip")
    assert replace(file, target="images").place == "images.zip"
    assert replace(file, unpack=False, target="set/a.json").place == "set/a.json"
    assert replace(file, saved_as="b.zip").place == "set/b.zip"


def test_folders(monkeypatch, tmp_path):
    for name in ("CELLKIT_DATA", "CELLKIT_WEIGHTS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert folder_of(REGISTRY["bbbc039"]) == Path.home() / ".cache/cellkit/data"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder_of(REGISTRY["cyto3"]) == tmp_path / "cellkit/weights"
    monkeypatch.setenv("CELLKIT_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("CELLKIT_WEIGHTS", str(tmp_path / "w"))
    assert (folder_of(REGISTRY["bbbc039"]), folder_of(REGISTRY["cyto3"])) == (tmp_path / "d", tmp_path / "w")
    assert folder_of(REGISTRY["cyto3"], tmp_path / "x") == tmp_path / "x"


def test_a_name_that_is_not_there():
    with pytest.raises(UserError, match=r"nothing called 'bbbc39' can be fetched \(did you mean 'bbbc039'\?\)"):
        find_entry("bbbc39")
