"""Images without labels among others with: left out where the truth is used, else kept, and the others are split as ever."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layout_cases import LABELS, config, listed, save

from cellkit.cells.instances import Instances
from cellkit.config.reading import load_config
from cellkit.errors import UserError
from cellkit.formats.label_images import write_labels
from cellkit.labelling.annotate import choose_labels
from cellkit.labelling.corrections import read_corrections
from cellkit.manifest import release
from cellkit.run.folder import Run
from cellkit.run.stale import check
from cellkit.sources.ingest import convert_images, list_images, locate_source

NAMES = [f"plate{k // 4}/{k:02}" for k in range(16)]


@pytest.fixture
def in_part(tmp_path):
    """Sixteen pictures in four folders, of which every third has no label image."""
    for k, name in enumerate(NAMES):
        save(
            tmp_path / f"in/images/{name}.png", np.random.default_rng(k).integers(0, 255, LABELS.shape, dtype=np.uint8)
        )
        if k % 3:
            write_labels(tmp_path / f"in/masks/{name}.tif", LABELS)
    return tmp_path / "in"


def splits(root, **options) -> dict[str, str]:
    return {item.source: item.split for item in list_images(config("folder", **options), root) if not item.is_left}


def test_they_are_kept_where_asked_and_the_others_are_split_as_without_them(in_part):
    without, kept = splits(in_part), splits(in_part, unlabelled="keep")
    bare = {f"images/{name}.png" for name in NAMES[::3]}
    assert {name for name, split in without.items() if not split} == bare, "listed, to be named"
    assert all(kept.values()) and {n: s for n, s in kept.items() if n not in bare} == {
        n: s for n, s in without.items() if n not in bare
    }
    assert {kept[name] for name in bare} >= {"train"}


@pytest.mark.parametrize("most", [1, 2, 3, 5, 9])
def test_max_images_chooses_and_splits_the_others_as_without_them(in_part, most):
    bare = {f"images/{name}.png" for name in NAMES[::3]}
    without, kept = (splits(in_part, max_images=most, unlabelled=unlabelled) for unlabelled in (None, "keep"))
    labelled = {name: split for name, split in kept.items() if name not in bare}
    assert labelled == {name: split for name, split in without.items() if name not in bare}
    assert (len(labelled), len(kept)) == (most, most + min(most, len(bare)))


@pytest.mark.parametrize("most", [6, 8])
def test_max_images_of_a_source_with_a_split_of_its_own_chooses_the_others_as_without_them(tmp_path, most):
    for k, split in enumerate(("train", "val", "test", "train") * 4):
        save(tmp_path / f"in/{split}/{split}{k}.png")
        if k % 3:
            write_labels(tmp_path / f"in/{split}/{split}{k}_masks.tif", LABELS)
    of = [listed(tmp_path / "in", config("folder", max_images=most, unlabelled=one)) for one in (None, "keep")]
    first, second = ({name: item.split for name, item in one.items() if not item.bare} for one in of)
    assert first == second and len(first) == most


def test_one_goes_with_its_group(in_part):
    kept = splits(in_part, unlabelled="keep", split_by="group")
    assert all(len({kept[f"images/{name}.png"] for name in NAMES[k : k + 4]}) == 1 for k in range(0, 16, 4))


@pytest.mark.parametrize("train", ["train", "val"])
def test_one_in_a_split_of_the_source_stays_there(tmp_path, train):
    for folder in ("train", "val", "test"):
        for k in range(3):
            save(tmp_path / folder / f"{folder}{k}.png")
            if (folder, k) != (train, 0):
                write_labels(tmp_path / folder / f"{folder}{k}_masks.tif", LABELS)
    found = listed(tmp_path, config("folder", unlabelled="keep"))
    assert {item.split for item in found.values()} == {"train", "val", "test"}
    assert next(item.split for item in found.values() if item.bare) == train
    made = convert_images(config("folder", unlabelled="keep"), tmp_path, tmp_path.parent / f"run_{train}")
    assert len(made.images) == 9 and not made.quarantined


def test_a_run_keeps_them_and_proposes_for_them(in_part, tmp_path, caplog):
    made = convert_images(config("folder", unlabelled="keep"), in_part, tmp_path / "run")
    assert len(made.images) == 16 and not made.quarantined
    assert [maker == "truth" for maker in made.images.made_by] == [k % 3 > 0 for k in range(16)]
    assert "6 of 16 images came without labels: 02 proposes for them" in caplog.text
    folder = str(in_part / "masks")
    chosen = choose_labels(made.images, [Instances.empty(LABELS.shape)] * 16, {}, folder)
    assert [one.made_by for one in chosen] == ["corrected" if k % 3 else "proposed" for k in range(16)]
    left = convert_images(config("folder"), in_part, tmp_path / "other")
    assert len(left.images) == 10 and {one.item for one in left.quarantined} == {f"images/{n}.png" for n in NAMES[::3]}


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("label: {use: truth}", None),
        ("label: {use: proposed}", "keep"),
        ("label: {use: some/folder}", "keep"),
        ("label: {use: proposed}\nconvert: {source: folder, unlabelled: leave_out}", "leave_out"),
        ("label: {use: proposed}\nconvert: {source: drawn}", None),
    ],
)
def test_what_label_use_says_decides(tmp_path, written, kept):
    (tmp_path / "c.yaml").write_text(written if "convert" in written else f"{written}\nconvert: {{source: folder}}")
    assert load_config(tmp_path / "c.yaml").convert.unlabelled == kept


def test_to_keep_what_no_labels_are_for_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("convert: {source: folder, unlabelled: keep}")
    with pytest.raises(UserError, match="unlabelled is keep, and label.use is truth, which has no labels for those"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, "colour"])
def test_a_picture_without_labels_is_no_label_where_both_lie_in_one_folder(tmp_path, kind):
    discs = np.zeros((48, 56), np.int32)
    for k, (y, x) in enumerate([(10, 12), (12, 40), (34, 20), (36, 44)], 1):
        discs[np.hypot(*np.ogrid[-y : 48 - y, -x : 56 - x]) < 7] = k
    for k in range(6):
        grey = 20 + 90 * (discs > 0) + np.random.default_rng(k).integers(0, 40, discs.shape)
        grey = (
            np.stack([grey, grey // 2, grey], axis=-1) if kind == "colour" else grey * (kind == np.uint16 and 30 or 1)
        )
        name = tmp_path / f"in/p{k}.{'tif' if kind == np.uint16 else 'png'}"
        save(name, grey.astype(np.uint8 if kind == "colour" else kind))
        if k % 3:
            write_labels(tmp_path / f"in/p{k}_masks.tif", discs)
    nuclei = "red" if kind == "colour" else 0
    made = convert_images(config("folder", nuclei, unlabelled="keep"), tmp_path / "in", tmp_path / "run")
    assert len(made.images) == 6
    blank = [Instances.empty(discs.shape)] * 6
    found, unused, beside = read_corrections(made.images, blank, tmp_path / "in")
    assert sorted(found) == ["p1", "p2", "p4", "p5"] and not unused and len(beside) == 6
    write_labels(tmp_path / "other/p0.tif", np.where(discs == 1, 1, 0)[:, :50])
    with pytest.raises(UserError, match="label this very image"):
        read_corrections(made.images, blank, tmp_path / "other")
    sources = {path.resolve() for path in (tmp_path / "in").glob("p[03].*")}
    before = replace(made.images, root=tmp_path / "nothing is converted yet")
    found, unused, beside = read_corrections(before, blank, tmp_path / "in", sources)
    assert sorted(found) == ["p1", "p2", "p4", "p5"] and not unused and len(beside) == 6
    write_labels(tmp_path / "in" / "p0.tif", discs) if kind == np.uint16 else write_labels(
        tmp_path / "in/p0_masks.tif", discs
    )
    assert "p0" in read_corrections(made.images, blank, tmp_path / "in")[0], (
        "labels are labels, whatever they are called"
    )


@pytest.mark.parametrize(
    ("without", "state"),
    [("", "fresh"), ("train val test", "fresh"), ("test", "fresh"), ("train0", "stale"), ("train0 test", "stale")],
)
@pytest.mark.parametrize(("then", "now"), [("truth", "proposed"), ("proposed", "truth"), ("truth", "in/masks")])
def test_label_use_makes_01_stale_only_where_it_decides_about_an_image(
    tmp_path, monkeypatch, without, state, then, now
):
    monkeypatch.chdir(tmp_path)
    for k, split in enumerate(("train", "val", "test") * 2):
        save(
            tmp_path / f"in/{split}/{split}{k}.png", np.random.default_rng(k).integers(0, 255, (24, 32), dtype=np.uint8)
        )
        if not {split, f"{split}{k}"} & set(without.split()):
            write_labels(tmp_path / f"in/{split}/{split}{k}_masks.tif", LABELS)
    Path("c.yaml").write_text("data: in\nclasses: [a]\nconvert: {source: folder, channels: {nuclei: 0}}")
    settings = load_config("c.yaml", {"label.use": then})
    stage = Run("run").start("01_convert", settings.convert)
    made = convert_images(settings.convert, locate_source(settings.convert, stage), stage.root, settings)
    stage.quarantine(made.quarantined)
    stage.done(images=stage.path("images"))
    release(Path("run"))
    one = check("run", "c.yaml", {"label.use": now})[0]
    assert one.state == state and ("convert.unlabelled" in one.why) == (state == "stale"), one.why
    assert check("run", "c.yaml", {"label.use": then})[0].state == "fresh"
    assert "convert.scale" in check("run", "c.yaml", {"label.use": now, "convert.scale": 0.5})[0].why
