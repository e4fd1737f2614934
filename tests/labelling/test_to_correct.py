"""The correction step: files to open, a person's work, and the way back."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cellkit.cells.instances import Instances
from cellkit.formats.labels import write_label_png
from cellkit.formats.roi import read_rois
from cellkit.formats.seg import read_seg
from cellkit.labelling.corrections import read_corrections
from cellkit.labelling.rounds import write_to_correct


@pytest.fixture
def run(tmp_path):
    return SimpleNamespace(folder=tmp_path / "r", name="runs/r")


def saved_by_cellpose(path, drop: int) -> None:
    """Save a ``_seg.npy`` file as the Cellpose window does: without what cellkit noted, and here without one cell."""
    fields = np.load(path, allow_pickle=True).item()
    fields.pop("cellkit")
    fields["masks"] = np.where(fields["masks"] == drop, 0, fields["masks"])
    np.save(path, np.array(fields, dtype=object), allow_pickle=True)


def test_what_is_written_opened_corrected_and_read_again(run, drawn):
    told = write_to_correct(run, "proposed", drawn, drawn.instances).splitlines()
    assert told[0] == f"{len(drawn)} images with what the model proposes: runs/r/to_correct"
    assert any("set label.use: runs/r/to_correct" in line for line in told)
    folder, names = run.folder / "to_correct", [record.image_id for record in drawn.records]
    endings = (".png", "_rois.zip", "_seg.npy")
    assert sorted(p.name for p in folder.iterdir()) == sorted(n + ending for n in names for ending in endings)
    assert (folder / f"{names[0]}.png").read_bytes() == (drawn.root / drawn.records[0].path).read_bytes()
    truth = drawn.instances[0].with_classes(0)
    assert read_seg(folder / f"{names[0]}_seg.npy").instances == truth
    assert read_rois(folder / f"{names[0]}_rois.zip").instances == truth

    found, unused, _ = read_corrections(drawn, drawn.instances, folder)
    assert not unused and not any(one.by_person for one in found.values()), "nobody has changed anything"
    saved_by_cellpose(folder / f"{names[1]}_seg.npy", 1)
    with open(folder / f"{names[3]}_seg.npy", "wb") as file:
        file.write(b"torn")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found, unused, _ = read_corrections(drawn, drawn.instances, folder)
    assert [item.item for item in unused] == [f"{names[3]}_seg.npy"]
    assert found[names[1]].by_person and len(found[names[1]].cells) == len(drawn.instances[1]) - 1

    nothing = [Instances.empty(cells.shape) for cells in drawn.instances]  # another model proposes otherwise
    told = write_to_correct(run, "proposed", drawn, nothing)
    assert f"somebody saved or confirmed them: {names[1]}, {names[3]}" in told
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    kept = {name for name in before if before[name] == after[name] and not name.endswith(".png")}
    assert kept == {f"{names[k]}{ending}" for k in (1, 3) for ending in endings[1:]}
    assert len(read_seg(folder / f"{names[0]}_seg.npy").instances) == 0


def test_an_image_that_a_person_confirmed_keeps_the_cells_that_were_looked_at(run, drawn):
    write_to_correct(run, "proposed", drawn, drawn.instances)
    folder, names = run.folder / "to_correct", [record.image_id for record in drawn.records]
    (folder / "confirmed.csv").write_text(f"image_id\n{names[1]}\n{names[2]}_seg.npy\n")
    nothing = [Instances.empty(cells.shape) for cells in drawn.instances]  # another model proposes otherwise
    assert f"or confirmed them: {names[1]}\n" in write_to_correct(run, "proposed", drawn, nothing)
    assert read_seg(folder / f"{names[1]}_seg.npy").instances == drawn.instances[1].with_classes(0)
    found = read_corrections(drawn, nothing, folder)[0]
    assert [name for name in names if found[name].by_person] == [names[1]]
    assert len(found[names[1]].cells) == len(drawn.instances[1])


def test_a_label_image_under_the_name_of_the_picture_is_a_persons_and_a_former_picture_is_not(run, drawn):
    write_to_correct(run, "proposed", drawn, drawn.instances)
    folder, names = run.folder / "to_correct", [record.image_id for record in drawn.records]
    labels = drawn.instances[0].paint()
    write_label_png(folder / f"{names[0]}.png", np.where(labels == 1, 0, labels))
    before = (folder / f"{names[0]}.png").read_bytes()
    told = write_to_correct(run, "proposed", drawn, drawn.instances)
    assert f"or confirmed them: {names[0]}\n" in told and (folder / f"{names[0]}.png").read_bytes() == before
    assert len(read_corrections(drawn, drawn.instances, folder)[0][names[0]].cells) == len(drawn.instances[0]) - 1
    other = drawn.root / drawn.records[2].path  # the pictures are made otherwise since
    records = [
        replace(record, path=drawn.records[2].path) if k == 1 else record for k, record in enumerate(drawn.records)
    ]
    assert drawn.instances[1].shape == drawn.instances[2].shape
    write_to_correct(run, "proposed", drawn.with_records(records), drawn.instances)
    assert (folder / f"{names[1]}.png").read_bytes() == other.read_bytes()


def test_of_many_images_some_are_written_and_the_way_to_more_is_said(run, drawn, monkeypatch):
    monkeypatch.setattr("cellkit.labelling.rounds.MOST_IMAGES", 2)
    told = write_to_correct(run, "proposed", drawn, drawn.instances).splitlines()
    assert told[0].startswith("2 images with") and len(list(run.folder.glob("to_correct/*.png"))) == 2
    assert told[1] == f"of {len(drawn)}, drawn at random; cellkit plan runs/r -n N adds those to correct first"


def test_where_labels_come_from_a_folder_nothing_is_written(run, drawn):
    assert "go on there" in write_to_correct(run, "my/labels", drawn, drawn.instances)
    assert "correct them where they lie" in write_to_correct(run, "truth", drawn, drawn.instances)
    assert not run.folder.exists()
