"""The look ahead at labels, models and settings, and all of it at once."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from preflight_cases import SIZE, converted, here, lab, labels, look, mask, refused, stack, texts, warned  # noqa: F401

from cellkit.config.reading import load_config
from cellkit.config.sections import Config
from cellkit.errors import UserError
from cellkit.formats.label_images import write_labels
from cellkit.microscope.file_info import headers_only
from cellkit.models.weights import save_checkpoint
from cellkit.run.notebooks import notebooks_of
from cellkit.run.preflight import Outlook, check_detector, check_evaluation, check_run
from cellkit.run.preflight_data import ERROR, WARNING

# ---- labels, models, settings ------------------------------------------------------------------------------------------


def other_network(path: str = "w.safetensors", backend: str = "threshold") -> str:
    import torch

    save_checkpoint(Path(path), {"diameter_px": torch.zeros(1)}, backend)
    return path


SETTINGS = {
    "label.use": ({"label__use": "corrected"}, "label.use is 'corrected', no such folder"),
    "label.model": ({"label__model": "starer"}, "no weights 'starer' (did you mean 'starter'?)"),
    "to be fetched": ({"label__model": "cyto3"}, "run: cellkit fetch cyto3"),
    "of another network": ({"finetune__base": "cpsam_v2"}, "finetune.base is 'cpsam_v2', weights of cellpose_sam"),
    "a checkpoint of another": (
        lambda: {"label__model": other_network()},
        "w.safetensors is a checkpoint of threshold -> open it with backend: threshold",
    ),
    "a start of another": (
        lambda: {"maskrcnn__start": other_network(backend="torchvision")},
        "give it as maskrcnn.start, with maskrcnn.backbone: resnet50_fpn_v2",
    ),
    "no file": ({"finetune__base": "runs/old:cellpose"}, "names a run folder that is not there: runs/old"),
    "a start that is not there": ({"maskrcnn__start": "resnet"}, "no weights 'resnet'"),
    "tuned for a ResNet": ({"maskrcnn__backbone": "resnet50_fpn_v2"}, "maskrcnn.start is tuned, a Cellpose network"),
    "tuned by a transformer": (
        {"finetune__backend": "cellpose_sam"},
        "its network is no start for maskrcnn_torchvision",
    ),
    "scratch": ({"maskrcnn__start": "scratch"}, "freeze_backbone is true"),
    "backend": ({"label__backend": "celpose_unet"}, "no backend 'celpose_unet' (did you mean 'cellpose_unet'?)"),
    "a setting that another backend has": (
        {"finetune__backend": "threshold", "finetune__base": "starter"},
        "unknown key 'finetune.base' (backend threshold has no such setting)",
    ),
    "a teacher whose images are left out": (
        lambda: stack(Path("s/HEK/HEK8.ome.tif")) or {"label__teacher": True},
        "label.use is truth, under which the 1 of 9 images without labels are left out and not taught from, e.g. ",
    ),
    "fuse": ({"evaluate__fuse": ["maskrnn"]}, "evaluate.fuse is 'maskrnn' (did you mean 'maskrcnn'?)"),
    "submit": ({"evaluate__submit": "maskrnn"}, "evaluate.submit is 'maskrnn' (did you mean 'maskrcnn'?)"),
}


@pytest.mark.parametrize("fault", SETTINGS)
def test_a_setting_that_a_later_notebook_would_refuse(here, fault):
    lab()
    settings, told = SETTINGS[fault]
    settings = settings() if callable(settings) else settings
    assert told in refused(**settings)


def test_a_missing_package_is_told_before_it_is_imported(here, monkeypatch):
    import importlib.util

    lab()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torchvision" else find(name, *a))
    assert (
        "backend 'maskrcnn_torchvision' needs the package 'torchvision' -> pip install torch torchvision" in refused()
    )


def test_a_folder_of_corrections_is_looked_through(here):
    lab(truth=False)
    labels(Path("fixed/HEK_HEK0.tif"))
    labels(Path("fixed/N2a1_cp_masks.tif"), 40)
    labels(Path("fixed/HEKl.tif"))
    told = warned(label__use="fixed")
    assert "fixed: HEKl.tif cannot be used: named after no image" in told
    assert (
        "fixed: N2a1_cp_masks.tif cannot be used: N2a1_cp_masks.tif is (40, 40), images/N2a_N2a1.png is (32, 32)"
        in told
    )
    mask(Path("fixed/HEK_HEK1.tif"))
    mask(Path("fixed/N2a_N2a0.tif"), 1, 3)
    labels(Path("fixed/N2a_N2a2.tif"))
    write_labels(Path("fixed/N2a_N2a2_masks.tif"), np.pad(np.ones((4, 4), np.uint16), (9, SIZE - 13)))
    Path("fixed/N2a_N2a3.tif").write_bytes(b"II*\0nothing")
    told = warned(label__use="fixed")
    for part in (
        "HEK_HEK1.tif cannot be used: HEK_HEK1.tif holds one id in 2 pieces",
        "N2a_N2a0.tif holds one id in 3 pieces: where cells are, not which pixel is whose -> number the cells: cellkit coco",
        "fixed: N2a_N2a2.tif cannot be used: N2a_N2a2_masks.tif labels the same image otherwise -> keep one",
        "fixed: N2a_N2a2_masks.tif cannot be used: N2a_N2a2.tif labels the same image otherwise -> keep one",
        "N2a_N2a3.tif cannot be read",
    ):
        assert part in told, told
    for path in Path("fixed").glob("N2a_*"):
        path.unlink()
    Path("fixed/HEK_HEK1.tif").unlink()
    os.unlink("fixed/HEK_HEK0.tif")
    assert "fixed has no label image for any of 8 images" in refused(label__use="fixed")
    labels(Path("runs/c/labels/HEK_HEK0.tif"))
    Path("runs/c/manifest.json").write_text(json.dumps({"format": 1, "stages": {}, "attempts": {}}))
    assert "which this run writes itself" in refused(label__use="runs/c/labels")


def test_proposals_beside_labels_and_a_foreign_sample_are_warned_of(here):
    lab()
    assert "label.use is proposed: the labels that 8 images came with are not used" in warned(label__use="proposed")
    Path("s/sample_submission.csv").write_text("ImageId,EncodedPixels\nHEK0,\n")
    assert "has the columns of dsb2018 -> set evaluate.profile: dsb2018" in warned()
    assert warned(evaluate__profile="dsb2018", convert__seed=2) == ""
    Path("s/sample_submission.csv").write_text("imageid;encodedpixels\nHEK0;\n")
    assert "has the columns of dsb2018 -> set evaluate.profile: dsb2018" in warned()
    Path("s/sample_submission.csv").write_text("ID;Predicted\nelsewhere;\n")
    assert "names 1 images, none of which is here: it is not followed" in warned()
    Path("s/sample_submission.csv").write_text("Image;Predicted\nHEK0;\n")
    assert "has no column 'ImageId' or 'id', or no row; its first line says: Image, Predicted" in warned()


def test_memory_disk_and_run_folder(here, monkeypatch):
    from cellkit import machine, manifest
    from cellkit.forecast import fits, stages
    from cellkit.forecast.speed import Speed
    from cellkit.models.shared.cost import Cost
    from cellkit.room import Disk, Memory

    lab()
    with monkeypatch.context() as patched:
        few = [
            Disk(what, Path(), k, free)
            for k, (what, free) in enumerate([("the run folder", 10**6), ("tmp", 10**9), ("cache", 0)])
        ]
        patched.setattr(fits, "places", lambda folder: few)
        assert "the run folder" in warned() and "1.0 MB are free on that disk" in warned()
    with monkeypatch.context() as patched:
        patched.setattr(fits, "memory_of", lambda: Memory(2 * 10**9, 10**8))
        assert "of memory, 100 MB are free -> " in warned(), "the images alone are too many"
        patched.setattr(fits, "memory_of", lambda: Memory(2 * 10**9, 10**8, swap=10**11))
        assert "the rest would be swapped" in warned()
    with monkeypatch.context() as patched:
        step = Cost(step_s=1, step_bytes=10**9)
        patched.setattr(stages, "speed_before", lambda backend, settings: Speed(step, 1, 10**8))
        patched.setattr(fits, "memory_of", lambda: Memory(16 * 10**9, 16 * 10**9))
        assert "03_finetune_cellpose takes about" in warned(finetune__steps=10**4, finetune__batch_size=64), (
            "timed before"
        )
        assert "it fits with finetune.batch_size: " in warned(finetune__steps=10**4, finetune__batch_size=64)
    with monkeypatch.context() as patched:
        patched.setattr(manifest, "free_bytes", lambda folder: 10_000_000)
        assert "10 MB are free at" in refused()
    with monkeypatch.context() as patched:
        patched.setattr(machine, "CHECK_MEMORY_FROM_BYTES", 1000)
        patched.setattr(machine, "memory", lambda: {"free_gb": 0.0001})
        assert "finding the cells of" in refused(label__diameter_px=5.0)
    Path("file").write_text("")
    cfg = load_config("c.yaml")
    assert "is no folder" in texts(check_run(cfg, "file/run"), ERROR)
    Path("photos").mkdir()
    Path("photos/cat.jpg").write_text("")
    assert "is no run folder and holds cat.jpg" in texts(check_run(cfg, "photos"), ERROR)
    assert "the run folder lies in the data folder" in texts(check_run(cfg, "s/run"), ERROR)


def test_a_detector_that_looks_at_flips_takes_their_memory(monkeypatch):
    from types import SimpleNamespace

    from cellkit.run import preflight

    needed = []
    monkeypatch.setattr(preflight, "check_memory", lambda path, size, what: needed.append(size))
    for flips in (None, 4):
        label = SimpleNamespace(backend="maskrcnn_torchvision", diameter_px=30.0, flips=flips)
        image = SimpleNamespace(height_px=512, width_px=512, source="a.tif", path="a.png")
        preflight.check_model_memory(SimpleNamespace(cfg=SimpleNamespace(label=label), records=[image]))
    assert needed[1] == 4 * needed[0] > 0


@pytest.mark.parametrize("section", ["finetune", "maskrcnn"])
def test_curves_without_their_package_are_refused_before_anything_is_made(section, here, monkeypatch):
    lab()
    assert "tensorboard" not in warned(**{f"{section}__tensorboard": True})
    monkeypatch.setattr("cellkit.models.curves.find_spec", lambda name: None)
    assert "needs the package 'tensorboard'" in refused(**{f"{section}__tensorboard": True})


def test_the_models_that_can_be_handed_in_are_those_of_the_notebooks():
    models = ["threshold", "teacher", "cellpose_base", "cellpose_tuned", "maskrcnn", "cellpose_classes"]
    keys = [key for book in notebooks_of(Config()) for key in book.keys if key.startswith("predictions_")]
    assert keys == [f"predictions_{name}" for name in models]
    with pytest.raises(UserError, match="cellpose_base, cellpose_tuned, maskrcnn, cellpose_classes$"):
        check_evaluation(Outlook(Config(evaluate={"submit": "none"}), Path()))
    without = Config(leave_out=["finetune"], evaluate={"submit": "cellpose_tuned"}, maskrcnn={"start": "starter"})
    with pytest.raises(
        UserError, match="is 'cellpose_tuned'.*\\nuse best, or one of threshold, maskrcnn, cellpose_classes$"
    ):
        check_evaluation(Outlook(without, Path()))
    with pytest.raises(UserError, match="maskrcnn.start is tuned, and leave_out names finetune"):
        check_detector(Outlook(Config(leave_out=["finetune"]), Path()))


def test_labels_of_every_kind_are_read_whole_where_pictures_are_not(here):
    from cellkit.formats.label_images import read_labels
    from cellkit.formats.labels import write_label_png

    labels(Path("a.tif"))
    write_label_png(Path("a.png"), np.arange(12, dtype=np.uint16).reshape(3, 4))
    tifffile.imwrite("b.tif", np.ones((2, 5, 6), np.float32), metadata={"axes": "ZYX"})
    with headers_only():
        for name, shape in (("a.tif", (SIZE, SIZE)), ("a.png", (3, 4)), ("b.tif", (5, 6))):
            found = read_labels(name)
            assert (found.shape, found.dtype, found.any()) == (shape, np.int32, True)


def test_the_proposals_of_the_last_round_beside_a_correction_are_no_second_opinion(here):
    from cellkit.cells.instances import Instances
    from cellkit.formats.label_images import read_labels
    from cellkit.formats.labels import write_chosen_cells

    lab(truth=False)
    proposed = Path("runs/c/labels/HEK_HEK0.tif")
    labels(proposed)
    write_chosen_cells(proposed.parent, [proposed], [Instances.from_labels(read_labels(proposed))], ["proposed"])
    Path("runs/c/manifest.json").write_text(json.dumps({"format": 1, "stages": {}, "attempts": {}}))
    labels(Path("fixed/HEK_HEK0.tif"))
    mask(Path("fixed/HEK_HEK0_cp_masks.tif"), 1, 1)
    assert "fixed" not in warned(label__use="fixed"), "the one is as proposed, the other is taken"


# ---- all at once, and the command line ---------------------------------------------------------------------------------


def spoil() -> None:
    """Put several faults of data, labels and classes into a good set."""
    lab()
    labels(Path("s/truth/HEK/HEK0.tif"), 40)
    labels(Path("s/truth/HEK/HEK99.tif"))
    stack(Path("s/N2a/N2a4.ome.tif"), names=("GFP",))
    labels(Path("s/truth/N2a/N2a4.tif"))
    Path("s/truth/classes.csv").write_text("file,label,class\nHEK/HEK1.ome.tif,1,Vero\n")


FAULTS = {"convert__split_by": "group", "evaluate__submit": "mask", "label__model": "cyto9", "finetune__base": "no.pth",
          "maskrcnn__backend": "maskrcnn", "classes": ["HEK", "N2a", "U2OS"]}  # fmt: skip

TOLD = {
    ERROR: ("split_by is group", "label 'Vero' is none", "no training image is of the class U2OS", "no weights 'cyto9'",
            "no weights 'no.pth'", "no backend 'maskrcnn'", "evaluate.submit is 'mask'"),
    WARNING: ("label image s/truth/HEK/HEK0.tif is 40 x 40", "truth/HEK/HEK99.tif", "'DAPI' is no channel",
              "class U2OS has no folder"),
}  # fmt: skip


def test_all_problems_are_listed_at_once_each_with_a_remedy(here):
    spoil()
    outlook = look(**FAULTS)
    for severity, parts in TOLD.items():
        assert all(part in texts(outlook, severity) for part in parts), texts(outlook, severity)
    assert len(outlook.errors()) == len(TOLD[ERROR])
    assert [one.severity for one in outlook.findings] == sorted(one.severity for one in outlook.findings)
    assert all(one.remedy for one in outlook.findings)
    keys = {one.key for one in outlook.findings}
    assert {"convert.split_by", "convert.class_names", "evaluate.submit", "convert.channels"} <= keys


def flags(settings: dict) -> list[str]:
    return ["--set", *(f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in settings.items())]


def test_check_of_a_configuration(here, said):
    spoil()
    code, out, err = said("check", "c.yaml", *flags(FAULTS))
    assert (code, err) == (2, "")
    assert all(part in out for parts in TOLD.values() for part in parts)
    assert out.index("error: ") < out.index("warning: ")
    assert out.splitlines()[-1].startswith("would run: 7 images (train ")
    code, out, err = said("check", "c.yaml", "--json", *flags(FAULTS))
    told = json.loads(out)
    assert (code, err, told["ok"], told["errors"]) == (2, "", False, len(TOLD[ERROR]))
    assert set(told["findings"][0]) == {"severity", "problem", "remedy", "key"}
    assert not Path("runs").exists()


def test_what_fills_a_split_is_told_with_what_to_do_and_not_where_the_set_is_too_small(here):
    lab(3)
    assert "few images: 1 moved, so that every split has images of every class (N2a_N2a0 to test)" in warned()
    assert "more images may move them back" in warned()
    for path in sorted(Path("s").rglob("*[12]*.tif")) + sorted(Path("s").rglob("N2a*.tif")):
        path.unlink(missing_ok=True)
    outlook = look(classes=["HEK"])
    assert not outlook.errors(), "one image is enough to train and to judge on"
    assert "no validation image: training images judge the adaptation" in texts(outlook, WARNING)


def test_a_split_without_a_class_is_told(here):
    for split, lines in {"train": ("HEK", "N2a"), "val": ("HEK", "N2a"), "test": ("HEK",)}.items():
        for line in lines:
            stack(Path(f"s/{split}/{line}/{line}.ome.tif"), seed=len(split + line))
            labels(Path(f"s/truth/{split}/{line}/{line}.tif"))
    assert "no test image is of the class N2a: the scores of test images say nothing of it" in warned()
    stack(Path("s/mixed/a.ome.tif"), seed=50)
    labels(Path("s/truth/mixed/a.tif"))
    assert "no test image" not in warned(), "a mixed image may have cells of it"


@pytest.mark.parametrize("cytoplasm", ["DAPI", 0])
def test_nuclei_and_cytoplasm_of_one_channel_are_told(here, capsys, cytoplasm):
    lab()
    told = "nuclei and cytoplasm are one channel (DAPI) in 8 of 8 images"
    assert told in warned(convert__channels__cytoplasm=cytoplasm)
    capsys.readouterr()
    converted(convert__channels__cytoplasm=cytoplasm)
    assert told in capsys.readouterr().err


def test_a_folder_of_another_name_is_told_with_one_class_too(here):
    lab()
    told = warned(classes=["HEK"])
    assert "N2a/ is called after none of the classes; with one class its cells count as HEK: 4 images" in told
    assert "1 group has images in more than one split (N2a)" in told


def test_files_of_channels_are_one_error_and_not_one_each(here):
    for k in range(6):
        for channel in ("C1-DAPI", "C2-GFP"):
            stack(Path(f"s/HEK/a{k}_{channel}.tif"), names=("",), seed=k)
        labels(Path(f"s/truth/HEK/a{k}.tif"))
    outlook = look(classes=["HEK"])
    assert [one.problem.split(" (")[0] for one in outlook.findings] == [
        "a0_C1-DAPI.tif and a0_C2-GFP.tif seem to be the channels of one image"
    ]


def test_a_channel_without_a_name_is_named_by_its_number(here, said):
    tifffile.imwrite("grey.tif", np.zeros((SIZE, SIZE), np.uint16))
    Path("s").mkdir()
    os.replace("grey.tif", "s/grey.tif")
    assert "convert: {channels: {nuclei: 0}}" in said("inspect", "s")[1]
    assert "convert: {channels: {nuclei: 0}}" in refused(
        convert__source="folder", convert__channels={"nuclei": None, "cytoplasm": None}, classes=["cell"]
    )


def test_check_takes_the_run_folder_that_run_takes(here, said):
    lab()
    assert said("check", "c.yaml", "--run", "own/place")[1].splitlines()[-1].endswith("into own/place")
    code, _, err = said("check", "own/place", "--run", "other")
    assert code == 2 and "name one: cellkit check DIR CONFIG" in err


def test_check_with_warnings_or_nothing_ends_with_0(here, said):
    lab()
    code, out, _ = said("check", "c.yaml", "--set", "convert.seed=2")
    assert (code, out.splitlines()[0]) == (0, "no problem is found")
    labels(Path("s/truth/HEK/HEK99.tif"))
    code, out, _ = said("check", "c.yaml", "--set", "convert.seed=2")
    assert code == 0 and "warning: " in out and "0 errors, 1 warning" in out


def test_every_wrong_key_of_a_configuration_is_told(here, said):
    Path("c.yaml").write_text("seed: many\nclases: [a]\nfinetune: {step: 3, batch_size: 0}\n")
    code, out, _ = said("check", "c.yaml")
    assert code == 2
    for part in ("unknown key 'clases'", "unknown key 'finetune.step'", "finetune.batch_size is 0", "seed is 'many'"):
        assert out.count(part) == 1, out
    assert "4 errors" in out
    code, _, err = said("check", "nothing.yaml")
    assert code == 2 and "config 'nothing.yaml' does not exist" in err
    Path("c.yaml").write_text("data: s\nfinetune: {base: nor}\nlabel: {model: neither}\n")
    out = said("check", "c.yaml")[1]
    assert "data is set ('s'), but convert.source is drawn" in out and "no weights 'neither'" in out


def test_a_run_is_refused_with_all_findings_and_leaves_nothing_behind(here, said):
    spoil()
    code, out, err = said("run", "c.yaml", *flags(FAULTS))
    assert (code, out) == (2, "")
    assert all(part in err for parts in TOLD.values() for part in parts)
    assert "7 errors, 5 warnings: nothing is run" in err and "01_convert" not in err
    assert not Path("runs").exists()


def test_a_refusal_of_a_fresh_start_keeps_what_was_there(here, said):
    Path("runs/c").mkdir(parents=True)
    Path("runs/c/manifest.json").write_text(json.dumps({"format": 1, "stages": {}, "attempts": {}}))
    before = Path("runs/c/manifest.json").read_text()
    code, _, err = said("run", "c.yaml", "--fresh")
    assert (code, err.splitlines()[0]) == (2, "data is 's', no such folder")
    assert Path("runs/c/manifest.json").read_text() == before


def test_only_what_would_run_is_looked_at(here, monkeypatch):
    """Of stages that are fresh nothing is asked, and images that are converted are not listed again."""
    from cellkit.run import preflight as module

    lab()
    cfg = load_config("c.yaml", {"label.model": "none", "evaluate.submit": "none", "finetune.base": "none"})
    monkeypatch.setattr(module, "OF_DATA", (lambda outlook: pytest.fail("the data were looked at"),))
    monkeypatch.setattr(module, "images_of_run", lambda outlook: None)
    told = texts(check_run(cfg, stages=["03_finetune_cellpose", "06_evaluate_map_iou"]), ERROR)
    assert "no weights 'none'" in told and "evaluate.submit" in told and told.count("no weights") == 1
    assert check_run(cfg, stages=["04_cells_to_coco"]).findings == []


def test_room_is_looked_for_of_the_notebooks_that_are_run(here, monkeypatch):
    from cellkit.forecast import fits
    from cellkit.forecast.stages import Plan
    from cellkit.room import Memory

    lab()
    cfg = load_config("c.yaml")
    outlook = check_run(cfg)
    told = Plan.of(cfg, outlook.stages, outlook.records, outlook.instances, False, outlook.sample).forecast()
    free = told["01_convert"].peak_bytes + 1
    assert free < max(one.peak_bytes for one in told.values())
    monkeypatch.setattr(fits, "memory_of", lambda: Memory(2 * 10**9, free))
    assert "of memory" in texts(check_run(cfg), WARNING)
    assert "of memory" not in texts(check_run(cfg, stages=["01_convert"]), WARNING)


@pytest.mark.parametrize(("swap", "forced"), [(0, False), (10**11, False), (10**11, True), (0, True)])
def test_a_run_says_once_that_it_does_not_fit(here, said, monkeypatch, swap, forced):
    from cellkit.forecast import fits
    from cellkit.room import Memory
    from cellkit.run import runner

    def stopped(*_):
        raise UserError("began")

    lab()
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.setattr(fits, "memory_of", lambda: Memory(2 * 10**9, 10**8, swap))
    monkeypatch.setattr(runner._Runner, "_run", stopped)
    keys = ("--set", "convert.seed=2", "--set", "finetune.steps=2", "--set", "maskrcnn.steps=2")
    code, out, err = said("run", "c.yaml", *keys, *["--force"] * forced)
    assert code == 2 and (out + err).count("of memory, 100 MB are free") == 1, out + err
    assert ("began" in err) == (forced or swap > 0)
