"""Drawn cells: the truth is exact, the same seed gives the same bytes, the defects are real, the files are OME-TIFF."""

import csv
import hashlib
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellkit.cells.drawn.camera import expose, expose_stack
from cellkit.cells.drawn.field import DEFECTS, draw_field
from cellkit.cells.drawn.style import LINES, FieldStyle, random_style
from cellkit.cells.labels import check_labels
from cellkit.errors import UserError
from cellkit.files import sha256_file, sha256_tree
from cellkit.formats.label_images import read_labels
from cellkit.sources.drawn.files import write_fields

BOTH = ("HEK", "N2a")


def digest(*arrays) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def pieces_per_label(labels: np.ndarray) -> np.ndarray:
    """Count 8-connected pieces of labels 1..N with scipy, one cell at a time (not the way the module does it)."""
    from scipy.ndimage import find_objects, label

    windows = find_objects(labels)
    return np.array([
        0 if window is None else label(labels[window] == k, np.ones((3, 3)))[1]
        for k, window in enumerate(windows, start=1)
    ], int)  # fmt: skip


def check_exact(field, size_px) -> None:
    """Assert everything the truth of a field promises."""
    count = len(field.class_names)
    for array, dtype in ((field.labels, np.int32), (field.nuclei_labels, np.int32),
                         (field.cytoplasm, np.float32), (field.nuclei, np.float32)):  # fmt: skip
        assert array.shape == tuple(size_px)
        assert array.dtype == dtype
    assert np.array_equal(np.setdiff1d(field.labels, 0), np.arange(1, count + 1))
    assert (pieces_per_label(field.labels) == 1).all()
    nucleus = field.nuclei_labels > 0
    assert (field.nuclei_labels[nucleus] == field.labels[nucleus]).all()
    assert all(pieces == 1 for pieces in pieces_per_label(field.nuclei_labels) if pieces)
    assert (np.bincount(field.labels.ravel(), minlength=count + 1)[1:] >= 8).all()
    if field.defect != "debris":
        assert (field.cytoplasm[field.labels == 0] == 0).all()
        assert (field.cytoplasm[field.labels > 0] > 0).all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    lines=st.sampled_from([("HEK",), ("N2a",), BOTH]),
    size_px=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    defect=st.sampled_from(DEFECTS),
)
def test_truth_is_exact_for_any_style(seed, lines, size_px, defect):
    style = random_style(np.random.default_rng(seed), size_px)
    field = draw_field(lines, style, seed, defect)
    check_exact(field, size_px)
    assert set(field.class_names) <= set(lines)
    picture = expose(field, style, seed)
    assert picture.shape == (2, *size_px)
    assert picture.dtype == np.uint16


def test_nuclei_lie_strictly_inside_their_cell():
    # a nucleus pixel whose neighbour belongs to another cell or to the background would be on the cell's rim
    field = draw_field(BOTH, FieldStyle(), 4)
    labels = np.pad(field.labels, 1, mode="edge")  # the image border is not a rim: cells go on behind it
    height, width = field.labels.shape
    nucleus = field.nuclei_labels > 0
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        neighbour = labels[dy : dy + height, dx : dx + width]
        assert (neighbour[nucleus] == field.labels[nucleus]).all()


def test_nearly_every_cell_has_one_bright_nucleus():
    field = draw_field(("HEK",), FieldStyle(density=0.6), 2)
    whole = np.setdiff1d(field.labels, np.concatenate([*field.labels[[0, -1]], *field.labels[:, [0, -1]].T]))
    with_nucleus = np.isin(whole, field.nuclei_labels)
    assert len(whole) > 15
    assert with_nucleus.mean() > 0.95
    assert field.nuclei[field.nuclei_labels > 0].mean() > 10 * field.nuclei[field.nuclei_labels == 0].mean()


@pytest.mark.parametrize("lines", [("HEK",), ("N2a",)])
def test_cells_have_the_wanted_size(lines):
    style = FieldStyle(size_px=(384, 384), tiny_fraction=0.0)
    diameters = []
    for seed in range(4):
        labels = draw_field(lines, style, seed).labels
        edge = np.concatenate([*labels[[0, -1]], *labels[:, [0, -1]].T])
        areas = np.bincount(labels.ravel())
        diameters += [2 * np.sqrt(areas[k] / np.pi) for k in range(1, len(areas)) if k not in edge]
    assert np.mean(diameters) == pytest.approx(style.diameter_px, rel=0.1)


def test_touching_cut_and_tiny_cells_exist():
    field = draw_field(BOTH, FieldStyle(tiny_fraction=0.1), 3)
    faults = check_labels(field.labels, tiny_px=250)
    assert faults["touching"] >= 10
    assert faults["border"] >= 5
    assert faults["tiny"] >= 2
    assert faults["pieces"] == 0


def test_mixed_fields_are_about_half_and_half():
    names = [name for seed in range(6) for name in draw_field(BOTH, FieldStyle(density=0.3), seed).class_names]
    assert len(names) > 100
    assert 0.4 < names.count("HEK") / len(names) < 0.6


def test_numbering_does_not_give_the_class_away():
    # numbers follow the reading order, not the order of drawing, which alternates between lines
    field = draw_field(BOTH, FieldStyle(), 1)
    firsts = [np.flatnonzero(field.labels == k)[0] for k in range(1, len(field.class_names) + 1)]
    assert firsts == sorted(firsts)


def solidity_and_touching(line: str) -> tuple[float, float]:
    """Return (mean area over convex hull area, mean share of touching cells) of whole cells in four fields."""
    from skimage.measure import regionprops

    solidity, touching = [], []
    for seed in range(4):
        labels = draw_field((line,), FieldStyle(tiny_fraction=0.0, density=0.35), seed).labels
        touching.append(check_labels(labels)["touching"] / labels.max())
        edge = np.concatenate([*labels[[0, -1]], *labels[:, [0, -1]].T])
        solidity += [region.solidity for region in regionprops(labels) if region.label not in edge]
    return float(np.mean(solidity)), float(np.mean(touching))


def test_the_two_lines_look_different():
    hek_solidity, hek_touching = solidity_and_touching("HEK")
    n2a_solidity, n2a_touching = solidity_and_touching("N2a")
    assert hek_solidity > 0.91  # polygons fill their hull
    assert n2a_solidity < hek_solidity - 0.05  # neurites do not
    assert hek_touching > n2a_touching + 0.05


def test_neurites_are_at_least_two_pixels_wide():
    # opening with a 2 x 2 square removes every line one pixel wide
    from scipy.ndimage import binary_opening

    style = FieldStyle(diameter_px=18.0, density=0.15)
    for seed in range(3):
        labels = draw_field(("N2a",), style, seed).labels
        opened = sum(binary_opening(labels == k, np.ones((2, 2))).sum() for k in range(1, labels.max() + 1))
        assert opened > 0.985 * (labels > 0).sum()


def test_same_seed_same_field_and_other_seed_another():
    style = FieldStyle(size_px=(96, 120))
    first, again, other = (draw_field(BOTH, style, seed) for seed in (7, 7, 8))
    assert digest(first.labels, first.cytoplasm, first.nuclei) == digest(again.labels, again.cytoplasm, again.nuclei)
    assert digest(first.labels) != digest(other.labels)
    assert digest(expose(first, style, 1)) == digest(expose(again, style, 1))
    assert digest(expose(first, style, 1)) != digest(expose(first, style, 2))


def test_drawing_leaves_numpys_global_generator_alone():
    before = digest(np.random.get_state()[1])  # noqa: NPY002
    draw_field(BOTH, FieldStyle(size_px=(64, 64)), 0)
    assert digest(np.random.get_state()[1]) == before  # noqa: NPY002


def test_empty_field_exposes_to_background():
    style = FieldStyle(size_px=(64, 80))
    field = draw_field(BOTH, style, 0, "empty")
    check_exact(field, (64, 80))
    assert field.class_names == ()
    expected = style.offset + style.gain * style.background
    assert expose(field, style, 0).mean() == pytest.approx(expected, rel=0.02)


def sharpness(picture: np.ndarray) -> float:
    """Return the variance of the Laplacian over the squared signal, after smoothing the noise away."""
    from scipy.ndimage import gaussian_filter, laplace

    smooth = gaussian_filter(picture.astype(float), 1.5)
    return float(laplace(smooth).var() / smooth.std() ** 2)


def test_out_of_focus_is_blurred_and_keeps_its_truth():
    style = FieldStyle()
    good, bad = (draw_field(("HEK",), style, 5, defect) for defect in ("", "out_of_focus"))
    assert np.array_equal(good.labels, bad.labels)
    for sharp, blurred in zip(expose(good, style, 0), expose(bad, style, 0), strict=True):
        assert sharpness(blurred) < 0.2 * sharpness(sharp)


def test_saturated_is_at_full_scale_and_debris_outshines_cells():
    style = FieldStyle()
    good, saturated, debris = (draw_field(("HEK",), style, 5, defect) for defect in ("", "saturated", "debris"))
    assert (expose(good, style, 0) == 65535).mean() < 0.001
    assert (expose(saturated, style, 0) == 65535).mean() > 0.1
    assert np.array_equal(good.labels, debris.labels)
    assert debris.cytoplasm.max() > 2 * good.cytoplasm.max()
    assert (debris.cytoplasm[debris.labels == 0] > style.photons).any()


def test_noise_is_poisson():
    # without read noise, blur or uneven light the variance over the mean of a pixel is the gain
    style = FieldStyle(size_px=(128, 128), read_noise=0.0, haze=0.0, illumination=0.0, offset=0.0)
    field = draw_field(BOTH, style, 0, "empty")
    picture = expose(field, replace(style, background=50.0), 3).astype(float)
    assert picture.mean() == pytest.approx(50 * style.gain, rel=0.02)
    assert picture.var() / picture.mean() == pytest.approx(style.gain, rel=0.05)


def test_uneven_light_darkens_a_corner():
    style = FieldStyle(size_px=(128, 128), density=0.0, illumination=0.5, haze=0.0)
    field = replace(draw_field(("HEK",), style, 0), cytoplasm=np.full((128, 128), 500.0, np.float32))
    picture = expose(field, style, 0)[1].astype(float)
    corners = [picture[y : y + 16, x : x + 16].mean() for y in (0, 112) for x in (0, 112)]
    assert min(corners) < 0.7 * picture.max()


def test_stack_is_sharpest_and_brightest_in_the_middle():
    style = FieldStyle()
    stack = expose_stack(draw_field(BOTH, style, 6), style, 5, 0)
    assert stack.shape == (5, 2, 256, 256)
    order = [sharpness(plane[1]) for plane in stack]
    assert order[2] > 1.5 * max(order[1], order[3])
    assert min(order[1], order[3]) > max(order[0], order[4])
    light = stack.mean((1, 2, 3))
    assert light[2] > max(light[1], light[3]) and min(light[1], light[3]) > max(light[0], light[4])


def test_a_field_is_drawn_fast():
    # 0.12 s on one core when written; the bound is generous for busy machines
    style = FieldStyle()
    draw_field(BOTH, style, 0)
    seconds = []
    for seed in range(3):
        start = time.perf_counter()
        expose(draw_field(BOTH, style, seed), style, seed)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.6


def test_random_styles_are_broad():
    rng = np.random.default_rng(1)
    styles = [random_style(rng, (64, 64)) for _ in range(300)]
    diameters, densities = np.array([(style.diameter_px, style.density) for style in styles]).T
    assert 18 <= diameters.min() < 20 and 43 < diameters.max() <= 45
    assert densities.min() < 0.2 and densities.max() > 0.85
    assert len(set(styles)) == 300


@pytest.mark.parametrize(
    ("lines", "style", "defect", "words"),
    [
        (("HEC",), FieldStyle(), "", "did you mean 'HEK'"),
        ("HEK", FieldStyle(), "", "wanted a sequence"),
        ((), FieldStyle(), "", "wanted a sequence"),
        (("HEK",), FieldStyle(), "out of focus", "did you mean 'out_of_focus'"),
        (("HEK",), FieldStyle(diameter_px=2.0), "", "diameter_px 2"),
        (("HEK",), FieldStyle(size_px=(0, 10)), "", "size_px is"),
    ],
)
def test_wrong_arguments_are_named(lines, style, defect, words):
    with pytest.raises(UserError, match=words):
        draw_field(lines, style, 0, defect)


def test_no_planes_is_refused():
    style = FieldStyle(size_px=(32, 32))
    with pytest.raises(UserError, match="planes is 0"):
        expose_stack(draw_field(("HEK",), style, 0), style, 0, 0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    arguments = {"images_per_line": 2, "mixed_images": 2, "size_px": 96, "empty_images": 1, "seed": 3}
    return folder, arguments, write_fields(folder / "one", **arguments)


def test_files_are_named_and_listed(written):
    folder, _, files = written
    listed = [file.path for file in files]
    assert listed == (
        [f"{line}/{line}_0{n}.ome.tif" for line in LINES for n in (1, 2, 3, 4)]
        + [f"mixed/mixed_0{n}.ome.tif" for n in (1, 2, 3)]
    )
    assert [file.defect for file in files] == ["", "", "out_of_focus", "debris"] * 2 + ["", "", "empty"]
    on_disk = sorted(path.relative_to(folder / "one").as_posix() for path in (folder / "one").rglob("*.*"))
    assert on_disk == sorted([*listed, *(file.truth for file in files), "truth/classes.csv"])


def test_ome_tiff_reads_back(written):
    import xml.etree.ElementTree as ElementTree

    import tifffile

    folder, _, files = written
    space = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
    for file in files:
        with tifffile.TiffFile(folder / "one" / file.path) as tiff:
            assert tiff.is_ome
            series = tiff.series[0]
            assert (series.axes, series.shape, series.dtype) == ("ZCYX", (3, 2, 96, 96), np.uint16)
            pixels = ElementTree.fromstring(tiff.ome_metadata).find(".//ome:Pixels", space)
        assert [channel.get("Name") for channel in pixels.findall("ome:Channel", space)] == ["DAPI", "GFP"]
        assert float(pixels.get("PhysicalSizeX")) == float(pixels.get("PhysicalSizeY")) == 0.45
        assert pixels.get("PhysicalSizeXUnit") == "µm"


def test_truth_files_and_classes_agree(written):
    folder, _, files = written
    with open(folder / "one" / "truth" / "classes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(file.cells for file in files)
    for file in files:
        labels = read_labels(folder / "one" / file.truth)
        assert labels.shape == (96, 96)
        mine = [row for row in rows if row["file"] == file.path]
        assert [int(row["label"]) for row in mine] == list(range(1, labels.max() + 1))
        assert {row["class"] for row in mine} <= (set(LINES) if file.line == "mixed" else {file.line})
        assert (file.cells == 0) == (file.defect == "empty")


def test_written_image_fits_its_truth(written):
    # the sharp plane's cytoplasm is brighter inside the truth than outside, by far more than the noise
    import tifffile

    folder, _, files = written
    for file in files:
        if file.defect not in ("debris", "empty"):
            sharp = tifffile.imread(folder / "one" / file.path)[1, 1].astype(float)
            cell = read_labels(folder / "one" / file.truth) > 0
            assert sharp[cell].mean() > 2 * sharp[~cell].mean()


def test_two_writes_give_the_same_bytes(written):
    folder, arguments, _ = written
    write_fields(folder / "two", **arguments)
    assert sha256_tree(folder / "one") == sha256_tree(folder / "two")


def test_bytes_repeat_in_another_process_with_other_threads(written):
    folder, arguments, files = written
    code = f"from cellkit.sources.drawn.files import write_fields; write_fields({str(folder / 'three')!r}, **{arguments!r})"
    environment = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PYTHONHASHSEED": "5", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert sha256_tree(folder / "one") == sha256_tree(folder / "three")


def test_more_images_leave_the_first_ones_as_they_were(written):
    folder, arguments, _ = written
    write_fields(folder / "more", **{**arguments, "images_per_line": 3, "mixed_images": 0, "defect_images_per_line": 0})
    for name in ("HEK/HEK_01.ome.tif", "N2a/N2a_02.ome.tif"):
        assert sha256_file(folder / "one" / name) == sha256_file(folder / "more" / name)
    assert not (folder / "more" / "mixed").exists()


def test_mixed_images_of_one_line_are_refused(tmp_path):
    with pytest.raises(UserError, match="two lines or more"):
        write_fields(tmp_path, lines=("HEK",), mixed_images=1)
    assert not list(tmp_path.iterdir())


def test_importing_the_module_loads_nothing_heavy():
    code = "import sys, cellkit.cells.drawn.field; print([m for m in ('scipy', 'skimage', 'tifffile') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]"
