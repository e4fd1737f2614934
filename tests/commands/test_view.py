"""`cellkit view`: an image and its cells as layers, or the files in words."""

import numpy as np
import pytest
from conftest import write_png

from cellkit.cells.instances import Instances
from cellkit.cells.records import ImageRecord
from cellkit.commands import viewing
from cellkit.commands.main import main
from cellkit.commands.viewing import chosen_view, layers_of
from cellkit.errors import UserError
from cellkit.formats.any import write_folder
from cellkit.formats.coco import write_coco
from cellkit.formats.label_images import write_labels
from cellkit.show import napari_layers
from cellkit.show.napari_layers import add_layers, cells_layer, channel_layers

CLASSES = ("HEK", "N2a, é")
TWO = np.array([[1, 1, 0, 0, 2], [1, 1, 0, 2, 0], [0, 0, 0, 2, 2]])


def two(scores=None):
    return Instances.from_labels(TWO, [2, 1], scores)


@pytest.fixture
def folder(tmp_path):
    records = []
    for name in ("a", "b"):
        write_png(tmp_path / f"p/{name}.png", np.arange(45, dtype=np.uint8).reshape(3, 5, 3))
        records.append(ImageRecord(name, f"{name}.png", 3, 5))
    cells = [two(scores=[1, 0.25]), two().with_unknown(TWO == 0)]
    write_coco(tmp_path / "cells.json", records, cells, CLASSES, with_scores=True)
    write_folder(tmp_path / "q", records[:1], cells[:1], CLASSES, "geojson")
    return tmp_path


def test_without_napari_the_files_are_named_and_how_to_open_them(folder, capfd, monkeypatch):
    monkeypatch.setattr(napari_layers, "find_spec", lambda name: None)
    assert main(["view", str(folder / "p"), str(folder / "cells.json")]) == 0
    told = capfd.readouterr().out
    assert f"picture         {folder}/p/a.png" in told
    assert f"cells           {folder}/cells.json: 2 cells" in told
    for word in ("--format roi", "--format geojson", "Fiji", "QuPath", "napari", "--image b"):
        assert word in told
    assert main(["view", str(folder / "p"), str(folder / "q")]) == 0
    assert f"cellkit coco {folder}/q -o cells.json" in capfd.readouterr().out


def test_with_napari_the_chosen_image_is_opened(folder, capfd, monkeypatch):
    opened = []
    monkeypatch.setattr(napari_layers, "find_spec", lambda name: True)
    monkeypatch.setattr(napari_layers, "open_napari", lambda layers, title: opened.append((title, layers)))
    assert main(["view", str(folder / "p"), str(folder / "cells.json"), "--image", "b"]) == 0
    assert capfd.readouterr().out == "b; 1 other image: --image a\n"
    ((title, layers),) = opened
    assert title == "b - cellkit"
    assert [layer.options["name"] for layer in layers] == ["red", "green", "blue", "cells"]
    assert np.array_equal(layers[0].data, np.arange(0, 45, 3).reshape(3, 5))
    assert np.array_equal(layers[-1].data, np.where(TWO, TWO, -1))


def test_cells_have_class_and_score_beside_their_number():
    layer = cells_layer("found", two(scores=[1, 0.25]), CLASSES, 0.5)
    assert layer.options["features"].to_dict("list")["class"] == ["", "N2a, é", "HEK"]
    assert layer.options["features"]["score"].tolist()[1:] == [1, 0.25]
    assert layer.options["scale"] == (0.5, 0.5)
    assert layer.colours[1] != layer.colours[2]
    assert cells_layer("found", two().with_classes(0), (), np.nan).colours == {}
    assert [one.options["colormap"] for one in channel_layers({"DAPI": TWO}, np.nan)] == ["gray"]


def test_a_run_shows_truth_labels_and_what_its_models_found(folder, monkeypatch):
    monkeypatch.setattr(viewing, "is_run_folder", lambda path: path == folder)
    (folder / "p").rename(folder / "images")
    (folder / "predictions").mkdir()
    (folder / "cells.json").rename(folder / "predictions/tuned.json")
    write_folder(folder / "labels", [ImageRecord("a", "a.png", 3, 5)], [two()])
    view = chosen_view(str(folder), None, None)
    assert {name: side.cells for name, side in view.cells.items()} == {"labels": 2, "tuned": 2}
    assert len(layers_of(view)) == 5


def test_cells_are_called_as_in_their_file(tmp_path):
    write_png(tmp_path / "p/a.png", np.arange(45, dtype=np.uint8).reshape(3, 5, 3))
    (tmp_path / "q").mkdir()
    write_labels(tmp_path / "q/a.tif", np.where(TWO == 1, 7, np.where(TWO == 2, 4, 0)))
    layer = layers_of(chosen_view(str(tmp_path / "p"), str(tmp_path / "q"), None))[-1]
    assert np.array_equal(layer.data, np.where(TWO == 1, 7, np.where(TWO == 2, 4, 0)))
    assert layer.options["features"]["index"].tolist() == [0, 4, 7]


def test_objects_of_qupath_have_the_size_of_their_image(folder):
    lines = (folder / "q/a.geojson").read_text().splitlines()
    (folder / "q/a.geojson").write_text('{"type": "FeatureCollection", "features": [\n' + "\n".join(lines[1:]))
    for image in ("p", "p/a.png"):
        view = chosen_view(str(folder / image), str(folder / "q/a.geojson"), "a")
        assert view.cells["a"].instances[0].shape == (3, 5)


def test_cells_called_as_some_of_the_run_are_shown_beside_those(folder, monkeypatch):
    monkeypatch.setattr(viewing, "is_run_folder", lambda path: path == folder)
    (folder / "p").rename(folder / "images")
    (folder / "cells.json").rename(folder / "truth.json")
    write_coco(folder / "other/truth.json", [ImageRecord("a", "a.png", 3, 5)], [two()[[0]]], CLASSES)
    view = chosen_view(str(folder), str(folder / "other/truth.json"), "a")
    assert [side.cells for side in view.cells.values()] == [2, 1]


def test_an_image_that_cannot_be_read_is_named(folder, capfd, monkeypatch):
    monkeypatch.setattr(napari_layers, "find_spec", lambda name: None)
    (folder / "p/broken.tif").write_bytes(b"II*\0 and no more")
    assert main(["view", str(folder / "p"), str(folder / "cells.json")]) == 0
    assert "skipped: " in (said := capfd.readouterr().err) and "broken.tif" in said


def test_cells_of_an_image_of_another_size_are_refused(folder):
    write_coco(folder / "large.json", [ImageRecord("a", "a.png", 6, 10)], [Instances.empty((6, 10))], CLASSES)
    with pytest.raises(UserError, match=r"of an image of 6 x 10 px, a.png is 3 x 5 px"):
        layers_of(chosen_view(str(folder / "p"), str(folder / "large.json"), "a"))


def test_what_is_refused(folder):
    with pytest.raises(UserError, match="no image 'c'"):
        chosen_view(str(folder / "p"), None, "c")
    with pytest.raises(UserError, match="has no cells of b\nit has those of a"):
        chosen_view(str(folder / "p"), str(folder / "q"), "b")
    assert main(["view", str(folder / "nothing")]) == 2


def test_layers_open_in_napari_itself(folder):
    components = pytest.importorskip("napari.components")
    viewer = components.ViewerModel()
    add_layers(viewer, layers_of(chosen_view(str(folder / "p"), str(folder / "cells.json"), "b")))
    assert [layer.name for layer in viewer.layers] == ["red", "green", "blue", "cells"]
    assert viewer.layers["cells"].features["class"].tolist() == ["", "N2a, é", "HEK"]
    assert not np.allclose(viewer.layers["cells"].get_color(1), viewer.layers["cells"].get_color(2))
