"""Many files to pictures: resumed after a kill, the same bytes for any number of workers, nothing half-written."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from batch_cases import RECIPE, contents, pictures, write_many, write_stack
from conftest import convert_file, encode_png
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cellkit.cells.records import read_records, write_records
from cellkit.commands.main import main
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError, readable
from cellkit.files import content_of, crc32_of
from cellkit.microscope.batch import convert_batch, measure_light
from cellkit.microscope.convert import Conversion
from cellkit.microscope.journal import png_parts, write_parts
from cellkit.sources.ingest import convert_images

# ---- PNG -----------------------------------------------------------------------------------------------------------

images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))


@settings(max_examples=100)
@given(images, st.booleans())
def test_a_png_is_a_png_and_holds_the_pixels(tmp_path_factory, image, dark):
    image = image // 60 if dark else image  # deflated or stored
    content = encode_png(image, 0.45)
    assert content == encode_png(image.copy(order="F"), 0.45)
    path = tmp_path_factory.mktemp("png") / "a.png"
    path.write_bytes(content)
    with Image.open(path, formats=["PNG"]) as picture:
        picture.verify()
    with Image.open(path) as picture:
        assert picture.mode == "RGB" and picture.info["dpi"][0] == pytest.approx(25400 / 0.45, rel=1e-6)
        np.testing.assert_array_equal(np.asarray(picture), image, strict=True)


def test_dark_pictures_are_deflated_and_noise_is_stored():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert len(encode_png(np.zeros((128, 128, 3), np.uint8))) < 2000
    assert noise.size < len(encode_png(noise)) < noise.size + 1000
    assert b"pHYs" not in encode_png(noise, math.nan) and b"pHYs" in encode_png(noise, 0.1)


def test_a_picture_alone_is_written_whole(tmp_path):
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    content = encode_png(image)
    assert write_parts(tmp_path / "a.png", png_parts(image, math.nan)) == (len(content), crc32_of(content))
    assert (tmp_path / "a.png").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# ---- content -------------------------------------------------------------------------------------------------------


def test_content_is_bytes_and_crc_of_files_and_folders(tmp_path):
    import zlib

    data = os.urandom(2**20 + 77)
    (tmp_path / "z.zarr/0").mkdir(parents=True)
    (tmp_path / "z.zarr/0/a").write_bytes(data)
    assert content_of(tmp_path / "z.zarr/0/a") == (len(data), zlib.crc32(data)) == (len(data), crc32_of(data))
    before = content_of(tmp_path / "z.zarr")
    (tmp_path / "z.zarr/0/a").rename(tmp_path / "z.zarr/0/b")
    assert before[0] == len(data) and content_of(tmp_path / "z.zarr") != before


@given(st.binary(min_size=1, max_size=40))
def test_any_file_name_can_be_written_as_text(name):
    text = readable(os.fsdecode(name))
    assert text.encode() and (readable(text) == text)


# ---- conversion ----------------------------------------------------------------------------------------------------


def test_a_batch_is_what_converting_each_file_gives(tmp_path):
    files = write_many(tmp_path / "in", 3) + [(write_stack(tmp_path / "t.ome.tif", 9, axes="TCYX"), "t")]
    done = convert_batch(files, tmp_path / "out", RECIPE)
    assert [path.name for path in done.written] == ["s000.png", "s001.png", "s002.png", "t_t0.png", "t_t1.png"]
    expected = [made for path, _ in files for made in convert_file(path, Conversion(RECIPE.channels))]
    for path, made in zip(done.written, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), made.image, strict=True)
    assert [(row["low"], row["high"]) for row in done.rows[:2]] == [(x.low, x.high) for x in expected[0].levels]
    assert done.rows[-1]["source"] == "t.ome.tif t 1" and done.rows[0]["source"] == "s000.ome.tif z max of 3"
    assert done.rows[0]["scaled_by"] == "percentiles 0.3 and 99.8 of the image"


@pytest.mark.parametrize("of", ["image", "batch"])
def test_the_same_bytes_for_any_number_of_workers(tmp_path, of):  # fault 57
    files = write_many(tmp_path / "in", 40)
    files[7][0].write_bytes(b"II*\0 torn")
    recipe = Conversion(RECIPE.channels, percentiles_of=of)
    done = {n: convert_batch(files, tmp_path / str(n), recipe, n) for n in (1, 2, 4)}
    assert len(pictures(tmp_path / "1")) == 39
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "4")
    assert done[1].rows == done[2].rows == done[4].rows and done[1].quarantined == done[2].quarantined


def test_a_batch_shares_one_scale_for_each_colour(tmp_path):
    files = write_many(tmp_path / "in", 35)  # more than are measured in one go
    done = convert_batch(files, tmp_path / "out", Conversion(RECIPE.channels, percentiles_of="batch"), workers=2)
    stacks = np.stack([tifffile.imread(path).max(0) for path, _ in files])
    for colour, channel in (("blue", 0), ("green", 1)):
        limits = {(row["low"], row["high"]) for row in done.rows if row["colour"] == colour}
        ((low, high),) = limits
        np.testing.assert_allclose([low, high], np.percentile(stacks[:, channel], [0.3, 99.8]))
    means = [np.asarray(Image.open(path)).mean() for path in done.written[:5]]
    assert means == sorted(means), "darker stacks stay darker"
    assert {row["scaled_by"] for row in done.rows} == {"percentiles 0.3 and 99.8 of the batch"}


def test_a_batch_of_floats_shares_a_scale_too_and_a_bad_file_counts_for_nothing(tmp_path):
    files = write_many(tmp_path / "in", 3, dtype=np.float32, size=200)
    bad = write_stack(tmp_path / "in/nan.ome.tif", 3, dtype=np.float32)
    pixels = tifffile.imread(bad)
    pixels[0, 0, 0, :2] = np.nan, 1e9
    tifffile.imwrite(bad, pixels, photometric="minisblack", ome=True, metadata={"axes": "ZCYX"})
    done = convert_batch(
        [*files, (bad, "nan")], tmp_path / "out", Conversion({"nuclei": 0}, "mean", percentiles_of="batch")
    )
    (bad_one,) = done.quarantined
    assert "NaN" in bad_one.reason  # fault 9
    pooled = np.stack([tifffile.imread(path)[:, 0].astype(float).mean(0) for path, _ in files])
    np.testing.assert_allclose(
        [done.rows[0]["low"], done.rows[0]["high"]], np.percentile(pooled, [0.3, 99.8]), rtol=1e-3
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_the_common_scale_names_the_files_that_it_is_measured_without(tmp_path, capsys, workers):
    files = write_many(tmp_path / "in", 3)
    files[1][0].write_bytes(b"II*\0 torn")
    measure_light([path for path, _ in files], RECIPE, workers)
    told = capsys.readouterr().err
    assert f"not in the common scale, as they cannot be read: {files[1][0]}\n" in told


def test_a_fault_of_the_place_is_no_files_while_the_common_scale_is_measured(tmp_path):
    def without_handles(path, conversion):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    with pytest.raises(UserError, match="too many files are open"):
        measure_light([tmp_path / "a.tif"], RECIPE, light_of=without_handles)


def test_a_bad_frame_does_not_cost_the_others_of_its_file(tmp_path):
    stack = np.ones((3, 8, 8), np.float32) * np.arange(8)
    stack[1, 0, 0] = np.inf
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, photometric="minisblack", ome=True, metadata={"axes": "TYX"})
    for _ in range(2):  # also when it is skipped
        done = convert_batch([(tmp_path / "a.ome.tif", "a")], tmp_path / "out", Conversion({"nuclei": 0}))
        assert [path.name for path in done.written] == ["a_t0.png", "a_t2.png"]
        assert [Path(q.item).name for q in done.quarantined] == ["a.ome.tif a_t1"]


def test_pixel_size_is_carried_and_follows_the_scale(tmp_path):
    path = write_stack(tmp_path / "a.ome.tif", PhysicalSizeX=0.25, PhysicalSizeXUnit="µm")
    done = convert_batch([(path, "a")], tmp_path / "out", Conversion({"nuclei": 0}, scale=0.5))
    assert done.rows[0]["um_per_px"] == 0.5
    with Image.open(done.written[0]) as picture:
        assert picture.size == (12, 12) and picture.info["dpi"][0] == pytest.approx(50800, rel=1e-6)


def test_axes_can_be_given(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.arange(2 * 20 * 20, dtype=np.uint16).reshape(2, 20, 20), metadata=None)
    assert not convert_batch([(tmp_path / "a.tif", "a")], tmp_path / "x", Conversion({"nuclei": 1})).written
    assert convert_batch([(tmp_path / "a.tif", "a")], tmp_path / "y", Conversion({"nuclei": 1}, axes="CYX")).written


def test_recipes_that_say_nothing_or_nonsense_are_refused():
    with pytest.raises(UserError, match="neither nuclei nor cytoplasm"):
        convert_batch([], "x", Conversion({"nuclei": None}))
    with pytest.raises(UserError, match="choose image or batch"):
        Conversion({"nuclei": 0}, percentiles_of="plate")


# ---- ids -----------------------------------------------------------------------------------------------------------


def test_a_frame_of_one_file_never_takes_the_place_of_another_file(tmp_path):  # fault 23
    series = write_stack(tmp_path / "a.ome.tif", axes="TCYX")
    single = write_stack(tmp_path / "a_t1.ome.tif", axes="CYX")
    with pytest.raises(UserError, match=r"a.ome.tif and .*a_t1.ome.tif|a_t1.ome.tif and .*a.ome.tif"):
        convert_batch([(series, "a"), (single, "a_t1")], tmp_path / "out", RECIPE)
    other = write_stack(tmp_path / "b.ome.tif", axes="CYX")
    assert len(convert_batch([(other, "a"), (single, "a_t1")], tmp_path / "out", RECIPE).written) == 2
    with pytest.raises(UserError, match="upper and lower case only"):  # fault 25
        convert_batch([(series, "a"), (single, "A")], tmp_path / "out", RECIPE)


AWKWARD = [
    "zell ä.tif",
    "日本.tif",
    "-rf.tif",
    "{}.tif",
    "a{b}.tif",
    "CON.tif",
    "=cmd.tif",
    "a%d.tif",
    "x" * 251 + ".tif",
]


def test_awkward_names_go_all_the_way(tmp_path, capsys):  # fault 24
    raw = os.fsencode(tmp_path) + b"/in/caf\xe9.tif"
    for number, name in enumerate(AWKWARD):
        write_stack(tmp_path / "in" / name, number)
    write_stack(Path(os.fsdecode(raw)), 99)
    command = ["convert", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--nuclei", "0", "--workers", "2"]
    assert main(command) == 0
    assert len(pictures(tmp_path / "out")) == len(AWKWARD) + 1
    assert r"caf\xe9.tif" in (tmp_path / "out/conversion.csv").read_text(encoding="utf-8")
    config = ConvertConfig(source="folder", channels={"nuclei": 0})
    made = convert_images(config, tmp_path / "in", tmp_path / "run")
    assert len(made.images.records) == len(AWKWARD) + 1 and not made.quarantined
    write_records(tmp_path / "records.csv", made.images.records)
    assert sorted(r.source for r in read_records(tmp_path / "records.csv"))[0].startswith("-rf.tif")


def test_loops_of_links_end_and_links_to_nowhere_are_set_aside(tmp_path, capfd):  # faults 25 and 52
    write_stack(tmp_path / "in/good.tif")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/round.tif").symlink_to(tmp_path / "in/round.tif")
    (tmp_path / "in/gone.tif").symlink_to(tmp_path / "in/nothing.tif")
    command = ["convert", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--nuclei", "0"]
    assert main(command) == 3
    assert list(pictures(tmp_path / "out")) == ["good.png"]
    told = capfd.readouterr().err
    assert "round.tif" in told and "gone.tif" in told


# ---- shell ---------------------------------------------------------------------------------------------------------


def test_a_bad_file_is_set_aside_and_said_by_the_exit_code(tmp_path, capfd):  # faults 1 to 3
    write_many(tmp_path / "in", 2)
    (tmp_path / "in/text.tif").write_text("no picture")
    command = [
        "convert",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
        "--nuclei",
        "0",
        "--percentiles-of",
        "batch",
    ]
    assert main(command) == 3
    assert "text.tif" in capfd.readouterr().err
    assert main([*command, "--allow-skips"]) == 0
    assert main([*command, "--percentiles-of", "plate"]) == 2


def test_pictures_of_files_that_are_not_given_any_more_are_named(tmp_path, capsys):
    many = write_many(tmp_path / "in", 3)
    convert_batch(many, tmp_path / "out", RECIPE)
    capsys.readouterr()
    convert_batch(many[:2], tmp_path / "out", RECIPE)
    assert "also holds 1 picture of files that are not among those given now, e.g. s002.png" in capsys.readouterr().err
    assert (tmp_path / "out/s002.png").is_file(), "another call may give it again"
    convert_batch(many, tmp_path / "out", RECIPE)
    assert "also holds" not in capsys.readouterr().err
