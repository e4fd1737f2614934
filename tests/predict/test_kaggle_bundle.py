"""A bundle says what each of its files is, is the same each time, and writes a submission where there is no network."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from predict_cases import folder, run_dir, unet  # noqa: F401

from cellkit.errors import UserError
from cellkit.files import sha256_file
from cellkit.formats.submission_check import check_submission
from cellkit.models import weights
from cellkit.predict import kaggle_bundle, locked_packages
from cellkit.predict.bundled_models import copy_files
from cellkit.predict.joined import fuse_models, open_model
from cellkit.predict.kaggle_bundle import check_bundle, open_bundle, submit_bundle, write_bundle
from cellkit.predict.locked_packages import packages_to_predict, read_lock
from cellkit.predict.model import find_model

OFFLINE = """import socket
def refuse(*a, **k): raise OSError("there is no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""
PROBE = "cellkit-probe"


@pytest.fixture(scope="module")
def bundle(run_dir, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("made") / "bundle"
    write_bundle(f"{run_dir}:threshold", out, "sartorius", {"min_area_px": 30})
    return out


@pytest.fixture
def competition(folder, tmp_path):  # noqa: F811
    """Test images, one of which is damaged and one blank, and the sample that asks for them."""
    test = Path(shutil.copytree(folder, tmp_path / "test"))
    (test / "damaged.png").write_bytes((test / "0.png").read_bytes()[:300])
    from PIL import Image

    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(test / "blank.png")
    ids = sorted(path.stem for path in test.iterdir())
    sample = tmp_path / "sample_submission.csv"
    sample.write_text("id,predicted\n" + "".join(f"{name},\n" for name in ids))
    return test, sample, ids


def rows(path: Path) -> list[tuple[str, str]]:
    with open(path, newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


def wheel(path: Path) -> Path:
    """A wheel of one module, as small as pip takes it."""
    info = "cellkit_probe-1.0.dist-info"
    files = {
        "cellkit_probe.py": "HERE = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PROBE}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_what_it_holds_is_listed_and_the_same_again(bundle, run_dir, tmp_path):  # noqa: F811
    listed = json.loads((bundle / "manifest.json").read_text())
    there = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert there == {*listed["files"], "manifest.json"}
    assert {
        "models/threshold.safetensors",
        "models/threshold.json",
        "code/cellkit/__init__.py",
        "submit.ipynb",
    } <= there
    assert not [name for name in there if "__pycache__" in name or "starter" in name]
    check_bundle(bundle)
    assert write_bundle(f"{run_dir}:threshold", tmp_path / "b.zip", "sartorius", {"min_area_px": 30}) == listed
    again = write_bundle(f"{run_dir}:threshold", tmp_path / "c.zip", "sartorius", {"min_area_px": 30})
    assert again == listed and (tmp_path / "b.zip").read_bytes() == (tmp_path / "c.zip").read_bytes()
    assert str(run_dir.parent) not in (bundle / "model.json").read_text(), "no path of this machine"
    assert not list(tmp_path.glob(".cellkit-bundle-*"))


def test_its_model_is_that_of_the_run(bundle, run_dir):  # noqa: F811
    ours, theirs = open_bundle(bundle), find_model(f"{run_dir}:threshold", {"min_area_px": 30})
    assert (ours.backend, ours.config, ours.classes) == (theirs.backend, theirs.config, theirs.classes)
    assert ours.sha256 == theirs.sha256 and ours.conversion.to_json() == theirs.conversion.to_json()


def test_a_changed_or_missing_file_is_named(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "wheels").mkdir()
    wheel(copy / "wheels" / "cellkit_probe-1.0-py3-none-any.whl")
    with pytest.raises(UserError, match="cellkit_probe.* is none of the wheels of requirements.txt"):
        check_bundle(copy)
    (copy / "code" / "numpy.py").write_text("")
    with pytest.raises(UserError, match="numpy.py was not bundled"):
        check_bundle(copy)
    (copy / "models" / "threshold.json").write_text("{}")
    with pytest.raises(UserError, match="threshold.json is not as it was bundled"):
        check_bundle(copy)
    (copy / "models" / "threshold.json").unlink()
    with pytest.raises(UserError, match="threshold.json is missing"):
        check_bundle(copy)
    with pytest.raises(UserError, match="has no manifest.json"):
        check_bundle(tmp_path)


def test_an_id_without_an_image_has_an_empty_row_and_an_image_nobody_asks_for_none(bundle, competition, tmp_path):
    test, sample, ids = competition
    wanted = ["ghost", *(name for name in ids if name not in ("0", "blank"))]
    sample.write_text("ID;Predicted\n" + "".join(f"{name};\n" for name in wanted))
    (test / "more").mkdir()
    shutil.copyfile(test / "blank.png", test / "more" / "blank.png")
    told = submit_bundle(bundle, test, sample, tmp_path / "s.csv").splitlines()
    written = rows(tmp_path / "s.csv")
    assert list(dict.fromkeys(name for name, _ in written)) == wanted
    assert [text for name, text in written if name in ("ghost", "damaged")] == ["", ""]
    assert {name for name, text in written if text} == set(wanted) - {"ghost", "damaged"}
    assert "1 id of " in told[-2] and told[-2].endswith("an empty row each: ghost")
    assert "3 images in " in told[-1] and told[-1].endswith("not handed in: 0, blank, blank")
    assert [line.split(",")[0] for line in told[1:-2]] == ["damaged: an empty row"]


def test_a_sample_of_other_images_is_refused(bundle, competition, tmp_path):
    test, sample, _ = competition
    sample.write_text("id,predicted\nghost,\nother,\n")
    with pytest.raises(UserError, match="none of 2 ids of .* has an image in .*, e.g. ghost"):
        submit_bundle(bundle, test, sample, tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


def test_the_notebook_runs_without_a_network_on_attached_files(run_dir, competition, tmp_path, monkeypatch):  # noqa: F811
    made = wheel(tmp_path / "cellkit_probe-1.0-py3-none-any.whl")
    lock = tmp_path / "lock.txt"
    own = (kaggle_bundle.PACKAGE.parent / "requirements/lock.txt").read_text()
    lock.write_text(f"{own}\n{PROBE}==1.0 \\\n    --hash=sha256:{sha256_file(made)}\n")
    known = packages_to_predict()
    monkeypatch.setattr(kaggle_bundle, "packages_to_predict", lambda: [*known, PROBE])
    out = tmp_path / "bundle"
    write_bundle(f"{run_dir}:threshold", out, "sartorius", {}, wheels=made.parent, lock=lock)
    assert (out / "wheels" / made.name).is_file()
    test, sample, ids = competition
    cells = json.loads((out / "submit.ipynb").read_text())["cells"]
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    assert [cell["metadata"].get("tags") for cell in cells if cell["source"] == code[0]] == [["parameters"]]
    places = f"bundle, images, sample, out = {str(out)!r}, {str(test)!r}, {str(sample)!r}, 'submission.csv'\n"
    found = "import cellkit, cellkit_probe\nprint(cellkit.__file__, cellkit_probe.HERE)\n"
    (tmp_path / "notebook.py").write_text("\n".join([code[0], places, *code[1:], found]))
    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(clean), "platbase": str(clean)}))
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # packages alone: no cellkit comes that way
    (site / "sitecustomize.py").write_text(OFFLINE)
    python = [str(clean / "bin" / "python"), "notebook.py"]
    alone = shutil.which("unshare") and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    command = ["unshare", "-rn", *python] if alone else python
    how = {
        "cwd": tmp_path,
        "capture_output": True,
        "text": True,
        "env": {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    }
    told = subprocess.run(command, **how)
    assert told.returncode == 0, told.stderr
    assert f"{out}/code/cellkit/__init__.py True" in told.stdout, "the code of the bundle, the wheel of the bundle"
    assert "\ndamaged: an empty row, " in told.stdout
    written = rows(tmp_path / "submission.csv")
    assert list(dict.fromkeys(name for name, _ in written)) == ids, "every id of the sample, in its order"
    assert [text for name, text in written if name in ("blank", "damaged")] == ["", ""]
    assert sum(bool(text) for _, text in written) > 20
    assert check_submission(tmp_path / "submission.csv", "sartorius", ids=ids) == []
    assert sys.prefix not in told.stdout


def test_wheels_are_those_of_the_lock(tmp_path, capsys):
    lock = tmp_path / "lock.txt"
    made = wheel(tmp_path / "cellkit_probe-1.0-py3-none-any.whl")
    for version, digest, told in (("1.0", "0" * 64, "is not the file of the lock"), ("2.0", sha256_file(made), "")):
        lock.write_text(f"# why\n{PROBE}=={version} \\\n    --hash=sha256:{digest}\nother==1 ; python_version < '3'\n")
        locked = read_lock(lock)
        assert list(locked) == [PROBE] and locked[PROBE].hashes == {digest}
        shutil.rmtree(tmp_path / "wheels", ignore_errors=True)
        if told:
            with pytest.raises(UserError, match=told):
                locked_packages.copy_wheels(tmp_path, tmp_path / "wheels", locked)
        else:
            assert locked_packages.copy_wheels(tmp_path, tmp_path / "wheels", locked) == []
    said = capsys.readouterr().err
    assert f"{made.name}: not of the lock, left out" in said and f"no wheel of 1 package there: {PROBE}" in said
    with pytest.raises(UserError, match="no folder of wheels.*\n.*pip download --no-deps"):
        locked_packages.copy_wheels(tmp_path / "none", tmp_path / "wheels", locked)
    with pytest.raises(UserError, match="no lock of packages at .*\n.*--lock FILE"):
        locked_packages.lock_file(tmp_path / "none.txt")


def test_every_package_of_a_prediction_is_locked_and_no_notebook_is_among_them():
    needed = packages_to_predict()
    locked = read_lock(locked_packages.lock_file(None))
    assert {"torch", "numpy", "safetensors", "tifffile"} <= set(needed) and "jupyterlab" not in needed
    assert not set(needed) - set(locked)


def test_packages_of_the_model_s_backend_are_in_the_list_or_named(run_dir, unet, tmp_path, monkeypatch, capsys):  # noqa: F811
    asked = []
    monkeypatch.setattr(
        locked_packages, "required_by", lambda name: asked.append(name) or ("skimage", "probe", "hypothesis")
    )
    monkeypatch.setitem(locked_packages.INSTALLED_AS, "probe", PROBE)
    lock, own = tmp_path / "lock.txt", (kaggle_bundle.PACKAGE.parent / "requirements/lock.txt").read_text()
    lock.write_text(f"{own}\n{PROBE}==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    (tmp_path / "all.yaml").write_text(f"fuse: {{models: [{unet}, {run_dir}:threshold]}}")
    write_bundle(str(tmp_path / "all.yaml"), tmp_path / "b", "sartorius", lock=lock)
    assert asked == ["cellpose_unet", "threshold"], "those of every model in it"
    assert f"{PROBE}==1.0" in (tmp_path / "b/requirements.txt").read_text()
    named = f"hypothesis=={importlib.metadata.version('hypothesis')}"
    for text in (capsys.readouterr().err, (tmp_path / "b/README.md").read_text()):
        assert named in text and "bundle again with a lock that has them: --lock FILE" in text
    assert "hypothesis" not in (tmp_path / "b/requirements.txt").read_text()
    write_bundle(f"{run_dir}:threshold", tmp_path / "c", "sartorius")
    assert PROBE in (tmp_path / "c/README.md").read_text(), "of one that is not here the name"


OWN_BACKEND = """
from cellkit.models.mine_helper import nothing
from cellkit.models.shared.contract import Segmenter
from cellkit.settings import Frozen
TITLE = "Mine"
NEEDS_CHECKPOINT = False
class Settings(Frozen):
    pass
def load(checkpoint, settings=None):
    return Segmenter(lambda image, left_out: nothing(image), {})
"""
OWN_HELPER = """
from cellkit.cells.instances import Instances
def nothing(image):
    return Instances.empty(image.shape[:2])
"""
OWN_PROFILE = 'COLUMNS = ("picture", "runs")\nPIXEL_ORDER = "row-major"\nTRUTH_COLUMNS = ()\n'


def test_modules_of_one_s_own_come_with_it(competition, tmp_path):
    files = {
        "models/mine.py": OWN_BACKEND,
        "models/mine_helper.py": OWN_HELPER,
        "formats/competitions/ours.py": OWN_PROFILE,
    }
    for name, text in files.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(text)
    test, sample, ids = competition
    sample.write_text("picture,runs\n" + "".join(f"{name},\n" for name in ids))
    env = os.environ | {"CELLKIT_MODULES": str(tmp_path / "own"), "PYTHONPATH": str(kaggle_bundle.PACKAGE.parent)}
    made = [sys.executable, "-m", "cellkit", "kaggle-bundle", "mine", "--profile", "ours", "-o", "b"]
    done = subprocess.run(made, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    use = "from cellkit.predict.kaggle_bundle import check_bundle, submit_bundle\ncheck_bundle('b')\n"
    use += f"submit_bundle('b', {str(test)!r}, {str(sample)!r}, 's.csv')"
    env = {name: value for name, value in env.items() if name != "CELLKIT_MODULES"} | {"PYTHONPATH": "b/code"}
    done = subprocess.run([sys.executable, "-c", use], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [name for name, _ in rows(tmp_path / "s.csv")] == ids


def test_the_command_says_what_it_wrote_and_what_it_refuses(run_dir, tmp_path, said):  # noqa: F811
    code, out, _ = said("kaggle-bundle", f"{run_dir}:threshold", "-o", tmp_path / "b", "--profile", "dsb2018")
    assert code == 0 and "for dsb2018" in out and "0 wheels" in out
    code, _, err = said("kaggle-bundle", f"{run_dir}:threshold", "-o", tmp_path / "b")
    assert code == 2 and "does not say for which competition" in err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    code, _, err = said("kaggle-bundle", f"{run_dir}:threshold", "-o", tmp_path / "mine", "--profile", "dsb2018")
    assert (
        code == 2 and "holds other files than a bundle" in err and (tmp_path / "mine" / "a.txt").read_text() == "mine"
    )
    code, _, err = said("kaggle-bundle", run_dir, "-o", tmp_path / "c", "--profile", "dsb2018")
    assert code == 2 and "RUN:NAME" in err


def test_a_file_that_is_no_bundle_stays(run_dir, tmp_path):  # noqa: F811
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("images/a.png", b"precious")
    (tmp_path / "text.zip").write_text("precious")
    for path in (tmp_path / "data.zip", tmp_path / "text.zip"):
        before = path.read_bytes()
        with pytest.raises(UserError, match="is another file than a bundle"):
            write_bundle(f"{run_dir}:threshold", path, "sartorius")
        assert path.read_bytes() == before
    write_bundle(f"{run_dir}:threshold", tmp_path / "b.zip", "sartorius", {"min_area_px": 30})
    listed = write_bundle(f"{run_dir}:threshold", tmp_path / "b.zip", "sartorius", {"min_area_px": 40})
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert json.loads(archive.read("manifest.json")) == listed, "an earlier bundle is replaced"


def test_what_was_added_to_a_bundle_is_not_lost(bundle, run_dir, tmp_path):  # noqa: F811
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "code" / "__pycache__").mkdir()
    (copy / "code" / "__pycache__" / "a.pyc").write_text("")
    (copy / "wheels").mkdir()
    wheel(copy / "wheels" / "cellkit_probe-1.0-py3-none-any.whl")
    with pytest.raises(UserError, match="cellkit_probe.* was added to the bundle and would be lost"):
        write_bundle(f"{run_dir}:threshold", copy, "sartorius")
    assert (copy / "wheels" / "cellkit_probe-1.0-py3-none-any.whl").is_file()
    write_bundle(f"{run_dir}:threshold", copy, "sartorius", wheels=copy / "wheels")
    check_bundle(copy)
    (copy / "submission.csv").write_text("")
    with pytest.raises(UserError, match="submission.csv was added to the bundle"):
        write_bundle(f"{run_dir}:threshold", copy, "sartorius")


def test_a_lock_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "lock.txt").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="lock.txt is not UTF-8 text"):
        read_lock(tmp_path / "lock.txt")


OF_SEVERAL = {
    "fused": "fuse: {models: [%(run)s:threshold, {model: %(unet)s, set: {min_area_px: 40}}], weights: [2, 1], iou: 0.3}",
    "of a fusion": "fuse: {models: [%(run)s:threshold, %(other)s]}",
    "routed": "route: {by: %(run)s:maskrcnn, otherwise: N2a, models: {HEK: %(unet)s, N2a: {model: %(run)s:threshold, "
    "set: {diameter_px: 25}}}}",
}


@pytest.mark.parametrize("which", OF_SEVERAL)
def test_a_model_of_several_is_bundled_whole(which, run_dir, unet, competition, tmp_path):  # noqa: F811
    path, other, (test, sample, ids) = tmp_path / "best.yaml", tmp_path / "other.yaml", competition
    other.write_text(f"fuse: {{models: [{unet}]}}")
    path.write_text(OF_SEVERAL[which] % {"run": run_dir, "unet": unet, "other": other})
    made = [write_bundle(str(path), tmp_path / name, "sartorius") for name in ("b", "c")]
    assert made[0] == made[1] and str(tmp_path) not in (tmp_path / "b/model.json").read_text()
    check_bundle(tmp_path / "b")
    ours, theirs = open_bundle(tmp_path / "b"), open_model(path)
    assert ours.sha256 == theirs.sha256 and ours.classes == theirs.classes
    for mine, yours in zip(ours.members, theirs.members, strict=True):
        assert (mine.backend, mine.own_px, mine.sha256) == (yours.backend, yours.own_px, yours.sha256)
        assert mine.config == yours.config or mine.backend == "fuse", "of a fusion it names the members"
    assert (ours.conversion and ours.conversion.to_json()) == (theirs.conversion and theirs.conversion.to_json())
    if which == "routed":  # the detector of this run holds no network
        return
    image = np.array(Image.open(test / f"{ids[0]}.png"))
    assert list(ours.load()([image])) == list(theirs.load()([image]))
    submit_bundle(tmp_path / "b", test, sample, tmp_path / "s.csv")
    assert {name for name, _ in rows(tmp_path / "s.csv")} == set(ids)


def test_a_run_whose_best_model_is_fused_is_bundled_as_that(run_dir, tmp_path):  # noqa: F811
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (run / "summary.json").write_text('{"best": "fused"}')
    manifest = json.loads((run / "manifest.json").read_text())
    entry = next(iter(manifest["stages"].values()))
    fuse = {"fuse": ["threshold", "cellpose_tuned"], "profile": "sartorius"}
    manifest["stages"]["06_evaluate_map_iou"] = entry | {"config": fuse, "inputs": {}, "outputs": {}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    write_bundle(str(run), tmp_path / "b", "sartorius")
    wanted = fuse_models([f"{run}:threshold", f"{run}:cellpose_tuned"])
    assert open_bundle(tmp_path / "b").sha256 == wanted.sha256


def test_a_route_by_looks_is_refused_with_what_to_do(run_dir, unet, tmp_path):  # noqa: F811
    path = tmp_path / "best.yaml"
    path.write_text(f"route: {{by: {unet}, like: {run_dir}, otherwise: HEK, models: {{HEK: threshold}}}}")
    with pytest.raises(UserError, match="routes by looks .*\nroute by the class"):
        write_bundle(str(path), tmp_path / "b", "sartorius")


def test_two_images_of_one_id_are_refused(bundle, competition, tmp_path):
    test, sample, ids = competition
    (test / "more").mkdir()
    shutil.copyfile(test / "blank.png", test / "more" / "blank.png")
    with pytest.raises(UserError, match="has several images of the id blank"):
        submit_bundle(bundle, test, sample, tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


def test_models_that_share_a_segmenter_or_differ_in_their_card_alone_lie_apart(unet, tmp_path):  # noqa: F811
    names = []
    for k in (0, 1):
        cells = weights.copy_checkpoint(unet, tmp_path / f"{k}/cells")
        told = {"segmenter": cells.name, "segmenter_sha256": sha256_file(cells)}
        names.append(tmp_path / f"{k}/classes.safetensors")
        weights.save_checkpoint(
            names[k], {"bias": torch.full((2,), k)}, "cell_classes", classes=("HEK", "N2a"), config=told
        )
    names.append(weights.copy_checkpoint(unet, tmp_path / "2/cells"))
    names[2].with_suffix(".json").write_text(names[2].with_suffix(".json").read_text().replace("28.0", "29.0"))
    (tmp_path / "all.yaml").write_text(f"fuse: {{models: [{', '.join(map(str, names))}]}}")
    write_bundle(str(tmp_path / "all.yaml"), tmp_path / "b", "sartorius")
    ours, theirs = open_bundle(tmp_path / "b"), open_model(tmp_path / "all.yaml")
    assert [one.sha256 for one in ours.members] == [one.sha256 for one in theirs.members]
    assert len({one.checkpoint.parent for one in ours.members}) == 3
    with pytest.raises(UserError, match="would take the place of another classes.safetensors"):
        copy_files(find_model(names[1]), ours.members[0].checkpoint.parent, "models")


def test_a_bundle_that_cannot_be_put_in_place_leaves_the_earlier_one(run_dir, tmp_path, monkeypatch):  # noqa: F811
    out, rename = tmp_path / "b", Path.rename
    write_bundle(f"{run_dir}:threshold", out, "sartorius", {"min_area_px": 30})
    before = (out / "manifest.json").read_bytes()

    def full(path, to):
        if path.name == "bundle":
            raise OSError(28, "No space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(f"{run_dir}:threshold", out, "sartorius", {"min_area_px": 40})
    assert (out / "manifest.json").read_bytes() == before
    check_bundle(out)


def test_a_link_to_a_folder_is_followed_and_the_current_folder_refused(run_dir, tmp_path, said):  # noqa: F811
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    write_bundle(f"{run_dir}:threshold", tmp_path / "link", "sartorius")
    assert (tmp_path / "link").is_symlink()
    check_bundle(tmp_path / "far/away")
    os.chdir(tmp_path / "far")
    for name in (".", "..", "../far/"):
        code, _, err = said("kaggle-bundle", f"{run_dir}:threshold", "-o", name, "--profile", "dsb2018")
        assert code == 2 and "is the current folder, or holds it" in err
