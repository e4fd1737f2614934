"""Many files to pictures: resumed after a kill, the same bytes for any number of workers, nothing half-written."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
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
from cellkit.microscope.journal import JOURNAL, Journal, alone_in, png_parts, still_there, write_parts
from cellkit.parallel import StopAll
from cellkit.sources.ingest import convert_images

RECIPE = Conversion({"nuclei": 0, "cytoplasm": 1})


def write_stack(path: Path, seed: int = 0, size: int = 24, axes: str = "ZCYX", dtype=np.uint16, **options) -> Path:
    lead = {"ZCYX": (3, 2), "TCYX": (2, 2), "CYX": (2,)}[axes]
    pixels = np.random.default_rng(seed).integers(0, 4000 * (seed % 5 + 1), (*lead, size, size)).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, photometric="minisblack", ome=True, metadata={"axes": axes, **options})
    return path


def write_many(folder: Path, count: int, **how) -> list[tuple[Path, str]]:
    return [(write_stack(folder / f"s{k:03d}.ome.tif", k, **how), f"s{k:03d}") for k in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    """Everything but the lock, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.endswith(".lock")}


def pictures(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.endswith(".png")}


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


# ---- resuming ------------------------------------------------------------------------------------------------------
def test_what_is_done_is_skipped_and_what_changed_is_made_again(tmp_path):
    files, out = write_many(tmp_path / "in", 6), tmp_path / "out"
    first = convert_batch(files, out, RECIPE)
    before = contents(out)
    stamps = {path.name: path.stat().st_mtime_ns for path in first.written}
    again = convert_batch(files, out, RECIPE, workers=2)
    assert (first.resumed, again.resumed) == (0, 6) and again.rows == first.rows and contents(out) == before
    assert {path.name: path.stat().st_mtime_ns for path in again.written} == stamps

    (out / "s001.png").write_bytes((out / "s001.png").read_bytes()[:-1] + b"x")  # damaged
    (out / "s002.png").unlink()
    age = files[3][0].stat()
    write_stack(files[3][0], 33)  # other pixels, same size and date: dates decide nothing (fault 53)
    os.utime(files[3][0], ns=(age.st_atime_ns, age.st_mtime_ns))
    os.utime(files[4][0])
    third = convert_batch(files, out, RECIPE)
    assert third.resumed == 3
    after = pictures(out)
    assert {name for name in after if after[name] != before[name]} == {"s003.png"}
    assert convert_batch(files, out, Conversion(RECIPE.channels, "mean")).resumed == 0
    assert convert_batch(files + [(write_stack(tmp_path / "new.ome.tif"), "new")], out, RECIPE).resumed == 0
    one_more = convert_batch(files + [(tmp_path / "new.ome.tif", "new")], out, RECIPE)
    assert one_more.resumed == 7


def test_the_picture_of_a_file_that_went_bad_goes_and_others_stay(tmp_path, capsys):
    files, out = write_many(tmp_path / "in", 3), tmp_path / "out"
    convert_batch(files, out, RECIPE)
    for path, _ in files[:2]:
        path.write_bytes(b"no image")
    (out / "s001.png").write_bytes(b"somebody's own")  # not what the journal knows: not ours to remove
    again = convert_batch(files, out, RECIPE)
    assert [q.item for q in again.quarantined] == [str(path) for path, _ in files[:2]]
    assert sorted(pictures(out)) == ["s001.png", "s002.png"] and pictures(out)["s001.png"] == b"somebody's own"
    assert "no longer gives s000.png: the picture is removed" in capsys.readouterr().err


def test_a_torn_or_foreign_journal_costs_work_and_nothing_else(tmp_path):
    files, out = write_many(tmp_path / "in", 3), tmp_path / "out"
    first = convert_batch(files, out, RECIPE)
    journal = (out / JOURNAL).read_bytes()
    lines = journal.splitlines(keepends=True)
    for text, kept in (
        (journal[:-9], 2),
        (lines[0] + b"\0\xff{}\n" + lines[2], 2),
        (lines[0].replace(b"s000", b"s009") + lines[1], 1),
        (b"00000000 {}\n[]\nnull\n", 0),
    ):
        (out / JOURNAL).write_bytes(text)
        done = convert_batch(files, out, RECIPE)
        assert done.resumed == kept and done.rows == first.rows
    assert convert_batch(files, out, RECIPE).resumed == 3


KILLED = """
import sys
from pathlib import Path
from cellkit.commands.main import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_killed_at_any_point_goes_on_and_ends_with_the_same_bytes(tmp_path, workers):  # fault 39
    write_many(tmp_path / "in", 60, size=128)
    (tmp_path / "run.py").write_text(KILLED)
    command = ["convert", str(tmp_path / "in"), "--nuclei", "0", "--cytoplasm", "1", "--workers", str(workers), "-o"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    out, kills, before = tmp_path / "out", 0, -1
    rng = np.random.default_rng(workers)
    for _ in range(4):
        target = before + int(rng.integers(1, 9))
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "run.py"), *command, str(out)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while process.poll() is None and _made(out) < target:
            time.sleep(0.002)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills, before = kills + 1, _made(out)
        for picture in out.glob("[!.]*.png"):
            Image.open(picture).verify()  # whole, whenever the kill came
    assert kills >= 2, "the batch must have been killed several times"
    assert main([*command, str(out)]) == 0
    assert pictures(out) == pictures(tmp_path / "whole")
    assert (out / "conversion.csv").read_bytes() == (tmp_path / "whole/conversion.csv").read_bytes()
    assert not list(out.glob(".tmp-*"))


def _made(out: Path) -> int:
    return sum(1 for _ in out.glob("[!.]*.png")) if out.is_dir() else 0


class TestConvertImages:
    CONFIG = ConvertConfig(source="folder", channels={"nuclei": 0, "cytoplasm": 1}, classes=("cell",))

    def write(self, root: Path) -> None:
        for k, (path, _) in enumerate(write_many(root / "images", 12, size=40)):
            labels = np.zeros((40, 40), np.uint16)
            labels[2:9, k : k + 9], labels[20:30, 20:30] = 1, 2
            tifffile.imwrite(root / "labels" / f"{path.name[:-8]}.tif", labels)

    def test_it_goes_on_where_it_was_killed(self, tmp_path, monkeypatch):
        (tmp_path / "in/labels").mkdir(parents=True)
        self.write(tmp_path / "in")
        whole = convert_images(self.CONFIG, tmp_path / "in", tmp_path / "whole")
        import cellkit.sources.ingest as sources

        real, made = sources.write_parts, []

        def put_some(path, parts):
            if len(made) == 7:
                raise KeyboardInterrupt
            made.append(path.name)
            return real(path, parts)

        monkeypatch.setattr(sources, "write_parts", put_some)
        with pytest.raises(KeyboardInterrupt):
            convert_images(self.CONFIG, tmp_path / "in", tmp_path / "run")
        made.clear()
        monkeypatch.setattr(sources, "write_parts", lambda path, parts: made.append(path.name) or real(path, parts))
        resumed = convert_images(self.CONFIG, tmp_path / "in", tmp_path / "run")
        assert len(made) == 5
        assert resumed.images.instances == whole.images.instances
        assert repr((resumed.images.records, resumed.quality)) == repr((whole.images.records, whole.quality))
        assert pictures(tmp_path / "run/images") == pictures(tmp_path / "whole/images")
        assert {path.name for path in (tmp_path / "run").iterdir()} == {
            "images", "conversion.csv", "originals.csv", "quality.csv",
        }  # fmt: skip
        assert not (tmp_path / "run" / JOURNAL).exists()

    def test_a_changed_label_or_setting_makes_everything_anew(self, tmp_path, monkeypatch):
        (tmp_path / "in/labels").mkdir(parents=True)
        self.write(tmp_path / "in")
        monkeypatch.setattr(Journal, "forget", lambda journal: None)
        convert_images(self.CONFIG, tmp_path / "in", tmp_path / "run")
        label = tmp_path / "in/labels/s003.tif"
        labels = tifffile.imread(label)
        labels[labels == 2] = 0
        tifffile.imwrite(label, labels)
        again = convert_images(self.CONFIG, tmp_path / "in", tmp_path / "run")
        assert [len(cells) for cells in again.images.instances].count(1) == 1

    def test_the_same_for_any_number_of_workers_and_one_scale_for_all(self, tmp_path):
        (tmp_path / "in/labels").mkdir(parents=True)
        self.write(tmp_path / "in")
        made = {}
        for workers in (1, 2, 4):
            config = self.CONFIG.model_copy(update={"workers": workers, "percentiles_of": "batch"})
            found = convert_images(config, tmp_path / "in", tmp_path / str(workers))
            made[workers] = found._replace(images=replace(found.images, root=Path()))
        assert repr(made[1]) == repr(made[2]) == repr(made[4])
        assert made[1].images.instances == made[2].images.instances == made[4].images.instances
        assert pictures(tmp_path / "1/images") == pictures(tmp_path / "2/images") == pictures(tmp_path / "4/images")
        assert len({(row["colour"], row["low"], row["high"]) for row in made[1].conversion}) == 2


# ---- the disk ------------------------------------------------------------------------------------------------------
def test_a_file_is_put_whole_or_not_at_all(tmp_path, monkeypatch):
    assert write_parts(tmp_path / "a", [b"12", b"345"]) == (5, crc32_of(b"12345"))
    assert still_there(tmp_path, {"a": [5, crc32_of(b"12345")]}) and not still_there(tmp_path, {"b": [0, 0]})

    def torn():
        yield b"x" * 9
        raise OSError(28, "No space left on device")

    with pytest.raises(StopAll, match="No space left on device\nfree space"):
        write_parts(tmp_path / "a", torn())
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"12345"


def test_a_full_disk_stops_the_batch_and_leaves_nothing_half_written(tmp_path):  # fault 38
    write_many(tmp_path / "in", 4, size=128)  # pictures of 49 kB
    code = """
        import resource, sys
        from cellkit.commands.main import main
        if __name__ == "__main__":
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            sys.exit(main(sys.argv[1:]))
    """
    (tmp_path / "run.py").write_text(textwrap.dedent(code))
    command = ["convert", str(tmp_path / "in"), "--nuclei", "0", "--cytoplasm", "1", "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, tmp_path / "run.py", *command], capture_output=True, text=True)
    assert done.returncode == 2 and "cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not pictures(tmp_path / "out") and not list((tmp_path / "out").glob(".tmp-*"))
    assert not (tmp_path / "out/conversion.csv").exists()
    assert main(command) == 0 and len(pictures(tmp_path / "out")) == 4


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):  # fault 51
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        convert_batch(write_many(tmp_path / "in", 1), out, RECIPE)


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):  # fault 51
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        convert_batch(write_many(tmp_path / "in", 1), tmp_path / "out", RECIPE)


def test_two_conversions_into_one_folder_are_one_too_many(tmp_path):  # fault 50
    with alone_in(tmp_path / "out"):
        (tmp_path / "out/.tmp-1-a.png").write_bytes(b"half")
        with pytest.raises(UserError, match="another conversion writes to"):
            convert_batch(write_many(tmp_path / "in", 1), tmp_path / "out", RECIPE)
        assert (tmp_path / "out/.tmp-1-a.png").exists()
    convert_batch(write_many(tmp_path / "in", 1), tmp_path / "out", RECIPE)
    assert not (tmp_path / "out/.tmp-1-a.png").exists()


def test_the_journal_is_plain_json_lines(tmp_path):
    convert_batch(write_many(tmp_path / "in", 2), tmp_path / "out", RECIPE)
    entries = [json.loads(line.split(b" ", 1)[1]) for line in (tmp_path / "out" / JOURNAL).read_bytes().splitlines()]
    assert [entry["item"] for entry in entries] == ["s000", "s001"]
    assert entries[0]["files"] == {"s000.png": list(content_of(tmp_path / "out/s000.png"))}


def test_what_a_user_has_to_know_is_said_and_what_is_left_out_is_set_aside(tmp_path, capsys):
    path = tmp_path / "a.ome.tif"
    flat = np.stack([np.arange(600).reshape(20, 30), np.full((20, 30), 5)]).astype(np.uint16)
    tifffile.imwrite(path, flat, metadata={"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 1.0})
    with tifffile.TiffFile(path) as tif:
        told = tif.pages[0].description
    with tifffile.TiffWriter(path) as file:  # one page more than it tells of
        for k, page in enumerate([*flat, flat[0]]):
            file.write(page, metadata=None, contiguous=False, description=told if not k else None)
    for _ in range(2):  # also of what was done before
        assert main(["convert", str(path), "-o", str(tmp_path / "out"), "--nuclei", "0", "--cytoplasm", "1"]) == 3
        said = capsys.readouterr().err
        assert "1 of its 3 pages are in no image that it describes: 2" in said
        assert "note: a: pixels are 0.5 um wide and 1 um high" in said
        assert "channel 1 is 5 in every pixel" in said
    with open(tmp_path / "out" / "conversion.csv", newline="") as file:
        notes = {row["colour"]: row["note"] for row in csv.DictReader(file)}
    assert "in every pixel" in notes["green"] and "in every pixel" not in notes["blue"]
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "note: pixels are 0.5 um wide" in said and "not read: a.ome.tif: 1 of its 3 pages" in said
