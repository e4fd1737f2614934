"""QuPath's GeoJSON, there and back: no pixel, class or number lost, shapely agrees, and no file does harm."""

import gzip
import json
import math
import zipfile

import numpy as np
import pytest
import shapely
from exchange_cases import CLASSES, TWO, cells, refused, two
from hypothesis import given, settings

from cellkit.__main__ import main
from cellkit.cells.instances import Instances
from cellkit.cells.outlines import cross_themselves, fill, simple_polygons
from cellkit.errors import UserError
from cellkit.formats.any import read_folder, read_side, write_folder
from cellkit.formats.contract import ImageToWrite
from cellkit.formats.geojson import picture_stem, write_geojson, write_image, written_here
from cellkit.formats.geojson_reading import read_geojson
from cellkit.formats.label_images import write_labels

SQUARE = [[1, 1], [4, 1], [4, 3], [1, 3], [1, 1]]


def feature(coordinates=(SQUARE,), kind="Polygon", **properties):
    return {
        "type": "Feature",
        "id": "0c8b7e3e-6d3d-4f6e-9a52-6b6a2f1b7a11",
        "geometry": {"type": kind, "coordinates": list(coordinates)},
        "properties": {"objectType": "annotation"} | properties,
    }


def box(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def collection(path, *features, **more):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features} | more))
    return path


def the(found, k=0):
    return np.argwhere(found.instances.mask(k)).tolist()


# ---- there and back ------------------------------------------------------------------------------------------------
def test_a_file_as_it_is_written(tmp_path):
    path = write_geojson(tmp_path / "a.geojson", two(scores=[1, 0.25]), CLASSES, measured={"area µm²": [1.5, math.nan]})
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["type"] == "FeatureCollection"
    assert (data["cellkit"]["shape"], data["cellkit"]["classes"]) == ([3, 5], list(CLASSES))
    square, other = data["features"]
    assert square["geometry"] == {"type": "Polygon", "coordinates": [[[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]]]}
    assert square["properties"] == {
        "objectType": "detection",
        "classification": {"name": "N2a, é", "color": [61, 110, 230]},
        "measurements": {"label": 1, "score": 1.0, "area µm²": 1.5},
    }
    assert len(square["id"]) == 36
    assert other["geometry"]["type"] == "MultiPolygon", "two pixels that meet at a corner are two pieces"
    assert other["properties"]["measurements"] == {"label": 2, "score": 0.25}
    again = write_geojson(
        tmp_path / "b" / "a.geojson", two(scores=[1, 0.25]), CLASSES, measured={"area µm²": [1.5, math.nan]}
    )
    assert again.read_bytes() == path.read_bytes()
    assert sorted(tmp_path.glob("*.*")) == [path]


def random_scene(rng):
    """Some objects with class and score: scattered pixels, so that holes, pieces, corners and overlaps abound."""
    shape = tuple(rng.integers(1, 12, 2).tolist())
    found = Instances.from_masks(rng.random((rng.integers(0, 5), *shape)) < rng.random(), shape)
    found = found[found.areas_px > 0]
    return found.with_classes(rng.integers(0, 3, len(found))).with_scores(rng.random(len(found)))


def test_a_thousand_scenes_come_back_pixel_by_pixel(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)
    rng = np.random.default_rng(15)
    overlapping = 0
    for k in range(1000):
        found = random_scene(rng)
        numbers = [3 * k + 2 for k in range(len(found))]
        back = read_geojson(write_geojson(tmp_path / f"{k}.geojson", found, CLASSES, numbers))
        assert back.instances == found
        assert (back.classes, back.numbers.tolist(), back.notes) == (CLASSES, numbers, ())
        overlapping += found.overlapping
    assert overlapping > 300


@settings(max_examples=100, deadline=None)
@given(cells(overlapping=False))
def test_shapely_finds_every_polygon_valid_and_of_the_same_area(found):
    for area, polygons in zip(found.areas_px.tolist(), simple_polygons(found), strict=True):
        shape = shapely.MultiPolygon([shapely.Polygon(shell, holes) for shell, *holes in polygons])
        assert shapely.is_valid(shape), shapely.is_valid_reason(shape)
        assert shape.area == area


def test_shapely_opens_a_file(tmp_path):
    labels = np.zeros((9, 9), np.int32)
    labels[1:8, 1:8], labels[3:6, 3:6], labels[4, 4], labels[0, 8] = 1, 0, 1, 2
    found = Instances.from_labels(labels)
    data = json.loads(write_geojson(tmp_path / "a.geojson", found).read_text())
    shapes = [shapely.from_geojson(json.dumps(one["geometry"])) for one in data["features"]]
    assert [(shape.geom_type, shape.area, shape.is_valid) for shape in shapes] == [
        ("MultiPolygon", 41, True),
        ("Polygon", 1, True),
    ]
    assert [len(shape.interiors) for shape in shapes[0].geoms] == [1, 0], (
        "the hole is that of the ring, not of the island"
    )


def test_a_hole_that_meets_the_outline_at_a_corner_stays_a_hole():
    (polygons,) = simple_polygons(Instances.from_labels(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]])))
    ((shell, hole),) = polygons
    assert sorted(map(tuple, hole.tolist())) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert len(set(map(tuple, shell.tolist()))) == len(shell)


def test_cells_with_nuclei(tmp_path):
    nuclei = Instances.from_masks([TWO == 9, TWO == 2], TWO.shape)
    path = write_geojson(tmp_path / "a.geojson", two(), CLASSES, nuclei=nuclei)
    first, second = json.loads(path.read_text(encoding="utf-8"))["features"]
    assert (first["properties"]["objectType"], second["properties"]["objectType"]) == ("detection", "cell")
    assert "nucleusGeometry" not in first
    assert second["nucleusGeometry"] == second["geometry"]
    back = read_geojson(path)
    assert back.instances == two()
    assert back.nuclei.areas_px.tolist() == [0, 4]
    side, skipped = read_folder(tmp_path)
    assert (side.cells, skipped) == (2, [])
    assert "1 of 2 cells are drawn with a nucleus too, not read here" in side.notes[0]


def test_nuclei_are_asked_of_files_that_hold_none(tmp_path, capfd):
    write_geojson(tmp_path / "g/a.geojson", Instances.from_labels(np.eye(4, dtype=int)))
    (tmp_path / "t").mkdir()
    write_labels(tmp_path / "t/a.tif", np.eye(4, dtype=int))
    for folder, said in (("g", "is drawn with a nucleus"), ("t", "only GeoJSON holds nuclei")):
        assert main(["coco", str(tmp_path / folder), "-o", str(tmp_path / "n.json"), "--nuclei"]) == 2
        assert said in capfd.readouterr().err
    assert not (tmp_path / "n.json").exists()


def test_what_is_not_annotated_is_a_region_to_ignore(tmp_path):
    found = two().with_unknown(TWO == 0)
    path = write_geojson(tmp_path / "a.geojson", found, CLASSES)
    region = json.loads(path.read_text(encoding="utf-8"))["features"][-1]
    assert region["properties"]["classification"]["name"] == "Ignore*"
    assert read_geojson(path).instances == found


def test_who_made_the_cells_is_kept_until_qupath_saves(tmp_path):
    path = write_geojson(tmp_path / "a.geojson", two(), CLASSES, made_by="proposed")
    assert read_geojson(path).made_by == "proposed"
    assert written_here(path)
    collection(path, *json.loads(path.read_text(encoding="utf-8"))["features"])
    assert not written_here(path)
    back = read_geojson(path, (3, 5))
    assert (back.made_by, back.instances) == ("", two(class_ids=[2, 1]))
    with pytest.raises(UserError, match="saved by QuPath: it may hold corrections"):
        write_image(path, ImageToWrite("a", two(), CLASSES))


def test_a_change_is_seen_also_where_a_script_keeps_what_cellkit_noted(tmp_path):
    path = write_geojson(tmp_path / "a.geojson", two(scores=[1, 1 / 3]), CLASSES, made_by="proposed")
    assert written_here(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data, indent=2))
    assert written_here(path), "only laid out otherwise"
    data["features"][0]["geometry"]["coordinates"][0][1][0] += 1
    path.write_text(json.dumps(data))
    assert not written_here(path)
    assert read_geojson(path).made_by == ""


# ---- what QuPath writes --------------------------------------------------------------------------------------------
def test_objects_as_qupath_exports_them(tmp_path):
    old = [{"name": "label", "value": 7}, {"name": "Detection probability", "value": 0.5}]
    path = collection(
        tmp_path / "a.geojson",
        feature([box(0, 0, 10, 8)], objectType="annotation", name="where I looked"),
        feature(
            [box(5, 1, 7, 3)], objectType="cell", classification={"names": ["Tumor", "Positive"], "color": [1, 2, 3]}
        ),
        feature(objectType="detection", classification={"name": "Stroma", "colorRGB": -377282}, measurements=old),
        feature([box(0, 0, 2, 2)], objectType="tile"),
        feature([box(0, 0, 1, 1)], classification={"name": "Region*"}),
        feature([box(7.5, 5.5, 99, 99)], objectType="detection", classification=None),
    )
    with pytest.raises(UserError, match="does not say how large its image is"):
        read_geojson(path)
    found = read_geojson(path, (8, 10))
    assert found.numbers.tolist() == [7, 0, 0]
    assert found.classes == ("Stroma", "Tumor: Positive")
    assert found.instances.class_ids.tolist() == [1, 2, 0]
    assert found.instances.scores.tolist() == [0.5, 1, 1]
    assert found.instances.boxes_xywh.tolist() == [[1, 1, 3, 2], [5, 1, 2, 2], [8, 5, 2, 3]]
    assert found.notes == (
        "a.geojson: 2 objects left out: no cell but a tile, a TMA core, the root, or of a class such as Region*",
        "a.geojson: 1 object left out: an annotation around others is a region, no cell",
        "a.geojson: 1 object reached beyond the image and was cut at its edge",
    )


@pytest.mark.parametrize("form", ["list", "one", "gz"])
def test_a_list_one_feature_and_a_packed_file(tmp_path, form):
    data = {"list": [feature()], "one": feature(), "gz": {"type": "FeatureCollection", "features": [feature()]}}[form]
    path = tmp_path / ("a.geojson.gz" if form == "gz" else "a.geojson")
    text = json.dumps(data).encode()
    path.write_bytes(gzip.compress(text) if form == "gz" else text)
    assert the(read_geojson(path, (8, 10))) == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]


def test_cells_drawn_as_annotations_are_cells_also_where_one_holds_a_nucleus(tmp_path):
    path = collection(tmp_path / "a.geojson", feature([box(0, 0, 5, 5)]), feature([box(1, 1, 3, 3)]))
    assert len(read_geojson(path, (8, 10)).instances) == 2
    collection(path, feature([box(0, 0, 5, 5)]), feature([box(1, 1, 3, 3)]), feature([box(3, 3, 4, 4)]))
    assert len(read_geojson(path, (8, 10)).instances) == 2


def test_names_of_files():
    assert picture_stem("slide 1.svs.geojson") == "slide 1"
    assert picture_stem("a.day 2.geojson") == "a.day 2", "no suffix of a picture"
    assert picture_stem("a.TIF.geojson.gz") == "a"


def test_a_folder_there_and_back_and_its_score(tmp_path, said):
    from exchange_cases import records

    side = records("a", "b")
    done = write_folder(tmp_path / "q", side, [two(), two(class_ids=[1, 1])], CLASSES, "geojson")
    assert (done.files, done.lost) == (2, 0)
    back, skipped = read_folder(tmp_path / "q")
    assert skipped == []
    assert back.instances == [two(), two(class_ids=[1, 1])]
    assert back.classes == CLASSES
    assert read_side(tmp_path / "q/a.geojson").instances == [two()]


# ---- what is refused -----------------------------------------------------------------------------------------------
NAN = float("nan")
HOSTILE = {
    "no area": feature([[1, 1], [2, 2]], "LineString"),
    "of type Point": feature([1, 1], "Point"),
    "crosses itself": feature([[[0, 0], [6, 6], [6, 0], [0, 6], [0, 0]]]),
    "covers no pixel": feature([box(100, 100, 120, 120)]),
    "not finite": feature([[[0, 0], [NAN, 0], [5, 5]]]),
    "far away": feature([[[0, 0], [1e308, 0], [5, 5]]]),
    "no pairs of numbers": feature([[[0, 0], [10**400, 0], [5, 5]]]),
    "that are no pairs": feature([[["0", "0"], ["5", "0"], ["5", "5"]]]),
    "an outline of 1 point": feature([[[0, 0], [0, 0]]]),
    "a polygon without outline": feature([[]], "MultiPolygon"),
    "a hole outside": feature([box(0, 0, 3, 3), box(5, 5, 7, 7)]),
    "no feature with geometry": {"type": "Feature", "geometry": None},
    "no feature": 7,
    "its class is": feature(classification={"name": 5}),
    "its class is called": feature(classification={"name": "x" * 300}),
    "of type GeometryCollection": feature([1], "GeometryCollection"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_object_that_is_no_cell_is_named_and_the_others_are_read(tmp_path, what):
    path = collection(tmp_path / "a.geojson", HOSTILE[what])
    assert what.split()[0] in refused(read_geojson, path, (8, 10))
    collection(path, HOSTILE[what], feature())
    assert what.split()[-1] in refused(read_geojson, path, (8, 10))
    failed = []
    assert len(read_geojson(path, (8, 10), failed).instances) == 1
    assert len(failed) == 1
    assert "object 1" in failed[0].reason
    assert what in failed[0].reason


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1", '{"type": "FeatureCollection"}', '{"features": 3}', "[" * 100_000, '"x"', "9" * 5000, "\x00"],
)
def test_a_file_that_is_no_geojson(tmp_path, text):
    path = tmp_path / "a.geojson"
    path.write_text(text)
    refused(read_geojson, path, (8, 10))
    with pytest.raises(UserError):
        read_folder(path)


@pytest.mark.parametrize("about", [{"shape": [3]}, {"shape": [0, 5]}, {"shape": [3, 2**40]}, {"shape": "3,5"},
                                   {"shape": [3, 5], "classes": [1]}, {"shape": [True, 5]}, {"shape": [4, 5]}])  # fmt: skip
def test_a_note_of_ours_that_was_changed(tmp_path, about):
    refused(read_geojson, collection(tmp_path / "a.geojson", feature(), cellkit=about), (3, 5))


def test_a_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "a.geojson.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 2**24 + b"]"))
    assert "unpacks from" in refused(read_geojson, path, (8, 10))
    path.write_bytes(path.read_bytes()[:-20])
    refused(read_geojson, path, (8, 10))


def test_geojson_by_another_name_or_in_a_zip_is_told(tmp_path):
    path = collection(tmp_path / "a.json", feature())
    with pytest.raises(UserError, match="is GeoJSON, no COCO file\nend its name with .geojson"):
        read_side(path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.geojson", path.read_text())
    with pytest.raises(UserError, match="GeoJSON of QuPath's"):
        read_folder(tmp_path / "a.zip")


def test_objects_of_several_planes(tmp_path):
    other = feature()
    other["geometry"]["plane"] = {"c": -1, "z": 3, "t": 0}
    assert "2 planes" in refused(read_geojson, collection(tmp_path / "a.geojson", feature(), other), (8, 10))


def test_what_cannot_be_written(tmp_path):
    path = tmp_path / "a.geojson"
    for arguments, text in (
        ((two(), ("a",)), "class 2 of 1"),
        ((two(), ("a", "ignore")), "name each once"),
        ((two(), CLASSES, [1, 1]), "number each cell once"),
        ((two(), CLASSES, None, two()[:1]), "2 cells have 1 nuclei"),
        ((two(), CLASSES, None, None, {"x": [1.0]}), "not measured once for each cell"),
    ):
        with pytest.raises(UserError, match=text):
            write_geojson(path, *arguments)
    assert not path.exists()


def test_a_class_may_be_called_anything_that_is_text(tmp_path):
    path = collection(tmp_path / "a.geojson", feature(classification={"name": "<b onclick='x'>HEK</b> & co"}))
    assert read_geojson(path, (8, 10)).classes == ("<b onclick='x'>HEK</b> & co",)


def test_outlines_that_cross_are_told_from_those_that_only_touch():
    touching = [[0, 0], [4, 0], [4, 4], [2, 4], [2, 0], [2, 4], [0, 4]]
    twice = box(0, 0, 4, 4)[:-1] * 2
    assert cross_themselves([touching, twice, box(1, 1, 3, 3)], (5, 5)).tolist() == [False, True, False]
    assert fill([touching], (5, 5))[1].sum() == 16
    assert cross_themselves([], (5, 5)).tolist() == []
