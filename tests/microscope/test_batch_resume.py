"""Conversion that was interrupted goes on; a full or read-only disk loses nothing."""

from __future__ import annotations

import csv
import json
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
from batch_cases import RECIPE, contents, pictures, write_many, write_stack
from PIL import Image

from cellkit.commands.main import main
from cellkit.config.sections import ConvertConfig
from cellkit.errors import UserError
from cellkit.files import content_of, crc32_of
from cellkit.microscope.batch import convert_batch
from cellkit.microscope.convert import Conversion
from cellkit.microscope.journal import JOURNAL, Journal, alone_in, still_there, write_parts
from cellkit.parallel import StopAll
from cellkit.sources.ingest import convert_images

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
