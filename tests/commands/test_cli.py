"""The command line: exit codes, two-line errors, JSON alone on stdout, quick to start."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import write_png
from filelock import FileLock

from cellkit.cells.instances import Instances
from cellkit.commands import doctor
from cellkit.commands import main as cli
from cellkit.commands.main import find_commands
from cellkit.commands.shared import Answer, json_text
from cellkit.errors import UserError
from cellkit.formats.coco import write_coco, write_results
from cellkit.formats.coco_reading import read_coco
from cellkit.formats.label_images import read_labels, write_labels

HEAVY = (
    "torch",
    "torchvision",
    "cellpose",
    "matplotlib",
    "pandas",
    "scipy",
    "skimage",
    "papermill",
    "IPython",
    "joblib",
)
ROOT = Path(__file__).parents[2]


def run(*arguments: str, **how) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "cellkit", *arguments], capture_output=True, text=True, **how)


@pytest.fixture
def refused(said):
    """Call main, check that it refuses in two lines on stderr and says nothing else, return both lines."""

    def call(*arguments) -> str:
        code, out, err = said(*arguments)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 2, err
        return err

    return call


@pytest.fixture(scope="module")
def pictures(drawn, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for record in drawn.records[:3]:
        shutil.copy(drawn.root / record.path, folder / f"{record.image_id}.png")
    return folder


@pytest.fixture(scope="module")
def truth(drawn, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("truth") / "truth.json"
    return write_coco(path, drawn.records[:3], drawn.instances[:3], drawn.classes)


@pytest.fixture
def stack(tmp_path) -> Path:
    metadata = {"axes": "CYX", "Channel": {"Name": ["actin", "DAPI"]}}
    planes = np.random.default_rng(0).integers(0, 4000, (2, 40, 50)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "cells.ome.tif", planes, metadata=metadata)
    return tmp_path / "cells.ome.tif"


class TestStart:
    @pytest.mark.parametrize("code", ["import cellkit", "from cellkit.commands.main import main; main(['--help'])"])
    def test_nothing_heavy_is_imported(self, code):
        tail = f"; import sys; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"

    def test_help_of_everything(self, said):
        code, out, err = said("--help")
        assert (code, err) == (0, "")
        for name in find_commands():
            assert f"    {name}" in out
            code, told, err = said(name, "--help")
            assert (code, err) == (0, "")
            assert told.startswith(f"usage: cellkit {name}")

    def test_version(self, said):
        from cellkit import __version__

        assert said("--version") == (0, f"cellkit {__version__}\n", "")

    def test_the_installed_command_is_this_one(self):
        from importlib.metadata import entry_points

        (entry,) = [e for e in entry_points(group="console_scripts") if e.name == "cellkit"]
        assert entry.value == "cellkit.__main__:main"
        assert run("--version").returncode == 0


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "problem", "remedy"),
        [
            ((), "no command is given", "commands: run, check"),
            (("rnu",), "no command 'rnu' (did you mean 'run'?)", "commands: run"),
            (("run",), "required: CONFIG", "cellkit run --help"),
            (("run", "c.yaml", "--form", "03"), "unrecognized arguments: --form", "--help"),
            (("run", "c.yaml", "--set", "finetune.steps"), "has no key=value", "--set finetune.steps=100"),
            (("run", "c.yaml", "--timeout", "0"), "--timeout is 0", "more than 0"),
            (("run", "c.yaml", "--timeout", "nan"), "--timeout is nan", "more than 0"),
            (("run", "c.yaml", "\u2013only", "03"), "'\u2013only' begins with a typographic dash", "write --only"),
            (("convert", "a.tif", "\u2014out=x"), "begins with a typographic dash", "write --out=x"),
            (("convert", "a.tif", "--out=~no-such-user/x"), "no home folder of ~no-such-user", "./~no-such-user/x"),
            (("run", "c.yaml", "--timeout", "soon"), "invalid float value: 'soon'", "--help"),
            (("predict", "threshold"), "required: IMAGES, -o/--out", "--help"),
            (("score", "a.json", "b.json", "--bootstrap", "-1"), "--bootstrap is -1", "0 (no interval) or more"),
            (("convert", "a.tif", "-o", "out", "--workers", "0"), "--workers is 0", "1 or more"),
            (("check", "runs/none"), "there is no run folder 'runs/none'", "cellkit run CONFIG --run FOLDER"),
            (("check", "runs/none", "--set", "seed=1"), "--set without CONFIG", "name the configuration"),
            (("inspect", "none.tif"), "no file at none.tif", "give the path"),
            (("inspect", "a.xyz"), "is no image format that is read", ".tif"),
            (("coco", "none", "-o", "x.json"), "no folder at none", "label images"),
            (("inspect", "none/"), "no file or folder at none/", "check the path"),
            (("labels", "none.json", "-o", "x"), "no file at none.json", "COCO"),
            (("labels", "folder", "-o", "x"), "folder is a folder", "cellkit coco FOLDER -o FILE"),
            (("check", "folder"), "'folder' is no run folder", "cellkit check FILE.yaml"),
            (("score", "a_run", "folder"), "a_run is a run folder", "truth.json"),
            (
                ("submit", "a_run", "--profile", "dsb2018", "-o", "x.csv"),
                "a_run is a run folder",
                "predictions/NAME.json",
            ),
            (
                ("submit", "none.json", "--profile", "sartorius", "-o", "x.csv"),
                "no file or folder at none.json",
                "COCO",
            ),
            (("check-submission", "none.csv", "--profile", "dsb2018"), "no file at none.csv", "submission CSV"),
            (("check-submission", "none.csv", "--profile", "dsb18"), "no profile 'dsb18'", "dsb2018, sartorius"),
        ],
    )
    def test_two_lines_and_exit_2(self, refused, tmp_path, monkeypatch, arguments, problem, remedy):
        monkeypatch.chdir(tmp_path)
        for name in ("folder", "a_run"):
            Path(name).mkdir()
        for name in ("manifest.json", "records.csv"):
            Path("a_run", name).touch()
        first, second = refused(*arguments).splitlines()
        assert problem in first
        assert remedy in second

    def test_options_are_not_guessed(self, refused):
        assert "unrecognized arguments: --js" in refused("check", "runs/none", "--js")


class TestRun:
    """Wrong inputs of `cellkit run`, found before any notebook is opened."""

    @pytest.fixture
    def config(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("CELLKIT_DATA", raising=False)
        return tmp_path / "mine.yaml"

    @pytest.mark.parametrize(
        ("yaml", "problem", "remedy"),
        [
            ("finetune: {stepz: 3}", "unknown key 'finetune.stepz' (did you mean 'steps'?)", "known keys of finetune"),
            ("finetune: {steps: many}", "finetune.steps is 'many' (text), wanted a whole number >= 1", "default 300"),
            ("convert: {source: folder}", "no data folder is set", "CELLKIT_DATA"),
            ("data: none\nconvert: {source: folder}", "data is 'none', no such folder", "set data:"),
            ("data: empty\nconvert: {source: folder}", "data is 'empty', an empty folder", "set data:"),
            ("data: data\nconvert: {source: folder, path: cels}", "(did you mean 'cells'?)", "set convert.path"),
            ("data: data\nconvert: {source: folder, path: cells}", "is an empty folder", "put images there"),
            ("a: [", "mine.yaml, line", "plain YAML"),
        ],
    )
    def test_config_and_data(self, refused, config, tmp_path, yaml, problem, remedy):
        config.write_text(yaml + "\n")
        (tmp_path / "empty").mkdir()
        (tmp_path / "data/cells").mkdir(parents=True)
        first, second = refused("run", config).splitlines()
        assert problem in first
        assert remedy in second
        assert not (tmp_path / "runs").exists(), "a refusal leaves nothing behind"

    def test_a_set_key_is_checked_like_the_file(self, refused, config):
        config.write_text("name: mine\n")
        assert "unknown key 'finetune.step' (did you mean 'steps'?)" in refused(
            "run", config, "--set", "finetune.step=1"
        )

    def test_no_such_config(self, refused, config):
        assert "does not exist" in refused("run", "configs/dmo.yaml")

    def test_a_run_folder_that_cannot_be_written(self, refused, config, tmp_path):
        config.write_text("name: mine\n")
        (tmp_path / "file").write_text("")
        assert "cannot be written" in refused("run", config, "--run", tmp_path / "file" / "run")

    def test_a_folder_of_other_things_is_no_run_folder(self, refused, config, tmp_path):
        config.write_text("name: mine\n")
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos/cat.jpg").write_text("")
        assert "is no run folder and holds cat.jpg" in refused("run", config, "--run", tmp_path / "photos")

    def test_a_second_writer(self, refused, config, tmp_path):
        config.write_text("name: mine\n")
        (tmp_path / "runs/mine/.lock").mkdir(parents=True)
        with FileLock(tmp_path / "runs/mine/.lock/writer"):
            assert "is being written by another process" in refused("run", config)

    def test_from_and_only(self, refused, config):
        config.write_text("name: mine\n")
        assert "--from, --only and --fresh exclude each other" in refused("run", config, "--from", "03", "--fresh")
        assert "no notebook is called '9'" in refused("run", config, "--only", "9")
        assert "no finished 01_convert before 03" in refused("run", config, "--from", "03")


class TestEndings:
    """What main does with whatever a command does."""

    @pytest.fixture
    def command(self, monkeypatch):
        def install(function):
            monkeypatch.setattr(doctor, "run", function)

        return install

    def test_anything_unforeseen_is_1_with_a_traceback_on_file(self, said, command, monkeypatch):
        def fail(given):
            return 1 / 0

        command(fail)
        monkeypatch.delenv("CELLKIT_DEBUG", raising=False)
        code, out, err = said("doctor")
        assert (code, out) == (1, "")
        first, second = err.splitlines()
        assert first == "failed: ZeroDivisionError: division by zero"
        log = Path(second.removeprefix("traceback: ").split(" (")[0])
        assert "1 / 0" in log.read_text()
        log.unlink()
        monkeypatch.setenv("CELLKIT_DEBUG", "1")
        code, out, err = said("doctor")
        assert (code, out) == (1, "")
        assert "Traceback (most recent call last)" in err and "1 / 0" in err

    def test_interrupted_is_130(self, said, command):
        def interrupt(given):
            raise KeyboardInterrupt

        command(interrupt)
        assert said("doctor") == (130, "", "interrupted\n")

    def test_a_refusal_of_many_lines_is_told_in_two(self, refused, command):
        def refuse(given):
            raise UserError("first", "second\nthird")

        command(refuse)
        assert refused("doctor") == "first\nsecond; third\n"

    def test_a_path_that_cannot_be_used_is_the_users(self, refused, command):
        command(lambda given: Path(__file__, "x").read_text())
        assert "Not a directory" in refused("doctor")

    def test_what_a_library_prints_goes_to_stderr(self, said, command):
        def chatter(given):
            print("hello from a library")
            return Answer('{"a": 1}')

        command(chatter)
        assert said("doctor", "--json") == (0, '{"a": 1}\n', "hello from a library\n")

    @pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
    def test_what_a_terminal_cannot_show_is_escaped_as_in_json(self, command, monkeypatch, encoding):
        name = "\u0142\u00e9\u7ec6\U0001f600\udcff.json"
        command(lambda given: Answer(json_text({"out": name})))
        buffer = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
        assert cli.main(["doctor", "--json"]) == 0
        assert json.loads(buffer.getvalue().decode(encoding)) == {"out": name}
        assert (r"\u0142" in buffer.getvalue().decode(encoding)) == (encoding != "utf-8")

    def test_closed_streams_take_all_and_no_file_takes_their_place(self, tmp_path):
        code = (
            "import sys; from cellkit.commands.main import main; code = main(['--version']); print('lost', file=sys.stderr)\n"
            "file = open('told', 'w'); print(code, file.fileno() > 2, file=file)"
        )
        command = ["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
        assert (tmp_path / "told").read_text() == "0 True\n"

    def test_a_current_folder_that_is_gone_is_said(self, refused, tmp_path, monkeypatch):
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        assert refused("doctor").startswith("the current folder was deleted or moved\nchange to a folder")

    def test_a_tilde_that_the_shell_left_alone_is_the_home_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        seen = {}
        for module in find_commands().values():
            monkeypatch.setattr(module, "run", lambda given: seen.update(vars(given)) or Answer())
        lines = ["check ~/c.yaml --run=~/r"]
        lines += ["predict ~/r:tuned ~/a ~/b/*.png --out=~/o --labels=~/l --overlays=~/v", "run ~/c.yaml --run=~/r"]
        lines += [
            "score ~/t ~/p --images=~/i --against=~/g",
            "coco ~/n -o~/o",
            "labels ~/f -o~/o --coco=~/k --suffix ~s",
        ]
        lines += ["check-submission ~/f --profile dsb2018 --sample=~/s", "fetch x --to=~/t --from ~/y", "inspect ~"]
        for line in lines:
            seen.clear()
            assert cli.main(line.split()) == 0
            values = [v for value in seen.values() for v in (value if isinstance(value, list) else [value])]
            assert [v for v in values if isinstance(v, str) and v.startswith("~")] == (["~s"] if "~s" in line else [])
            assert sum(str(v).startswith(str(tmp_path)) for v in values) == line.replace("~s", "").count("~")

    @pytest.mark.parametrize("streams", [("stdout",), ("stdout", "stderr")])
    def test_nobody_reads_any_more(self, streams):
        read_end, write_end = os.pipe()
        os.close(read_end)
        pipes = {"stdout": write_end, "stderr": write_end if "stderr" in streams else subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-m", "cellkit", "--help"], text=True, **pipes)
        _, err = process.communicate()
        os.close(write_end)
        assert process.returncode == 0
        assert not err


class TestInspectAndConvert:
    def test_a_file(self, said, stack):
        code, out, err = said("inspect", stack, "--json")
        told = json.loads(out)
        assert (code, err) == (0, "")
        assert (told["kind"], told["axes"], told["shape"], told["channels"]) == (
            "file",
            "CYX",
            [2, 40, 50],
            ["actin", "DAPI"],
        )
        assert "channels: 0 actin, 1 DAPI" in said("inspect", stack)[1]

    def test_a_data_set_and_a_coco_file(self, said, truth, pictures):
        told = json.loads(said("inspect", pictures, "--json")[1])
        assert (told["kind"], told["images"], told["objects"]) == ("folder", 3, 0)
        told = json.loads(said("inspect", truth, "--json")[1])
        assert (told["kind"], told["images"], sorted(told["classes"])) == ("coco", 3, ["HEK", "N2a"])

    def test_a_layout_is_that_of_a_folder(self, refused, stack):
        assert "is no folder" in refused("inspect", stack, "--source", "labelme")

    def test_convert(self, said, refused, stack, tmp_path):
        code, out, _ = said(
            "convert",
            stack,
            "-o",
            tmp_path / "out",
            "--nuclei",
            "Hoechst",
            "--nuclei",
            "DAPI",
            "--cytoplasm",
            "0",
            "--z",
            "mean",
        )
        assert (code, out) == (0, f"{tmp_path / 'out'}: 1 picture\n")
        assert (tmp_path / "out/cells.png").is_file()
        assert "0 actin, 1 DAPI; neither nuclei nor cytoplasm is named" in refused(
            "convert", stack, "-o", tmp_path / "out"
        )
        assert "'GFP' is no channel of cells.ome.tif, which has" in refused(
            "convert", stack, "-o", tmp_path / "o", "--nuclei", "GFP"
        )

    def test_convert_sets_bad_files_aside(self, said, stack, tmp_path):
        (tmp_path / "cut.tif").write_bytes(stack.read_bytes()[:300])
        arguments = ("convert", tmp_path, "-o", tmp_path / "out", "--nuclei", "1")
        code, out, err = said(*arguments)
        assert (code, out) == (3, f"{tmp_path / 'out'}: 1 picture\n")
        assert "skipped:" in err and "cut.tif" in err
        assert said(*arguments, "--allow-skips")[0] == 0


class TestPredictAndScore:
    def test_predict_then_score(self, said, drawn, pictures, truth, tmp_path):
        out = tmp_path / "out.json"
        code, text, _ = said(
            "predict", "threshold", pictures, "-o", out, "--labels", tmp_path / "labels", "--diameter", "30"
        )
        assert code == 0
        coco = read_coco(out)
        assert text == f"{out}: 3 images, {sum(map(len, coco.instances))} cells\n"
        code, text, err = said("score", truth, out, "--json", "--bootstrap", "100")
        assert (code, text.count("\n"), err) == (0, 1, "")
        told = json.loads(text)
        assert told["images"] == 3
        assert 0.1 < told["conventions"]["kaggle"]["score"] < 1
        low, high = told["conventions"]["kaggle"]["interval"]
        assert low <= told["conventions"]["kaggle"]["score"] <= high
        assert set(told["conventions"]["kaggle"]["by_threshold"]) == {f"{t / 100:.2f}" for t in range(50, 100, 5)}
        again = json.loads(said("score", truth, tmp_path / "labels", "--json", "--bootstrap", "100")[1])
        assert again["conventions"]["kaggle"] == told["conventions"]["kaggle"], "label images say the same"

    def test_score_in_words(self, said, truth):
        code, out, _ = said(
            "score", truth, truth, "--convention", "kaggle, coco", "--by", "cell_type", "--bootstrap", "10"
        )
        assert code == 0
        assert "kaggle        1.000  [1.000, 1.000]" in out
        assert "coco" in out and "stardist" not in out
        assert "HEK" in out and "N2a" in out

    def test_score_results_and_csv(self, said, drawn, truth, tmp_path):
        results = write_results(tmp_path / "r.json", [1, 2, 3], drawn.instances[:3])
        code, out, _ = said("submit", results, "--coco", truth, "--profile", "sartorius", "-o", tmp_path / "s.csv")
        assert (code, out[: len(str(tmp_path))]) == (0, str(tmp_path))
        scores = []
        for found in ((results,), (tmp_path / "s.csv", "--profile", "sartorius")):
            code, out, _ = said("score", truth, *found, "--json", "--convention", "kaggle", "--bootstrap", "0")
            scores.append(json.loads(out)["conventions"]["kaggle"]["score"])
        assert scores == [1.0, 1.0]
        code, out, _ = said("score", tmp_path / "s.csv", truth, "--profile", "sartorius", "--json", "--bootstrap", "0")
        assert json.loads(out)["conventions"]["kaggle"]["score"] == 1.0, "either side may be the CSV"

    def test_images_that_do_not_match(self, refused, said, truth, tmp_path):
        write_labels(tmp_path / "labels/0.tif", np.zeros((128, 128), np.int32))
        text = refused("score", truth, tmp_path / "labels")
        assert "2 of the 3 images of" in text and "(1, 2)" in text and "--common" in text
        assert said("score", truth, tmp_path / "labels", "--common", "--bootstrap", "0")[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (("--convention", "kagle"), "no convention 'kagle' (did you mean 'kaggle'?)"),
            (("--by", "colour"), "by is 'colour'"),
        ],
    )
    def test_names_are_checked(self, refused, truth, arguments, problem):
        assert problem in refused("score", truth, truth, "--bootstrap", "0", *arguments)

    def test_bad_images_end_with_3(self, said, pictures, tmp_path):
        shutil.copy(pictures / "0.png", tmp_path / "0.png")
        (tmp_path / "1.png").write_bytes(b"\x89PNG")
        arguments = ("predict", "threshold", tmp_path, "-o", tmp_path / "out/o.json")
        code, out, err = said(*arguments)
        assert (code, out.count("\n")) == (3, 1)
        assert f"skipped: {tmp_path / '1.png'}: 1.png cannot be read" in err
        assert said(*arguments, "--allow-skips")[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (("treshold", "{p}"), "did you mean 'threshold'"),
            (("threshold", "{p}/none"), "no file or folder at"),
            (("threshold", "{p}/*.jpg"), "no file matches"),
            (("threshold", "{e}"), "no image in the folder"),
            (("threshold", "{p}", "--diameter", "0"), "diameter_px is 0"),
            (("threshold", "{p}", "--diameter", "big"), "diameter_px is 'big'"),
            (("threshold", "{p}", "--set", "diameter=3"), "threshold has no setting 'diameter'"),
            (("threshold", "{p}", "--diameter", "9", "--set", "diameter_px=3"), "--diameter and --set diameter_px"),
            (("threshold", "{s}"), "0 actin, 1 DAPI; neither nuclei nor cytoplasm is named"),
            (("threshold", "{p}", "--z", "mean"), "neither nuclei nor cytoplasm is named"),
            (("threshold", "{p}", "-o", "{e}"), "is a folder"),
            (("threshold", "{p}", "-o", "{p}"), "would be written over the images"),
            (("threshold", "{s}", "--nuclei", "GFP"), "'GFP' is no channel of cells.ome.tif"),
            (("threshold", "{s}", "--nuclei", "1", "--z", "top"), "projection is 'top'"),
        ],
    )
    def test_predict_refuses(self, refused, pictures, stack, tmp_path, arguments, problem):
        (tmp_path / "empty").mkdir()
        given = [a.format(p=pictures, e=tmp_path / "empty", s=stack) for a in arguments]
        given += [] if "-o" in given else ["-o", tmp_path / "o.json"]
        assert problem in refused("predict", *given)
        assert not (tmp_path / "o.json").exists()

    def test_a_microscope_file_with_its_channels(self, said, stack, tmp_path):
        code, _, _ = said(
            "predict", "threshold", stack, "-o", tmp_path / "o.json", "--nuclei", "DAPI", "--percentiles", 1, 99
        )
        assert code == 0
        conversion = json.loads((tmp_path / "o.json").read_text())["info"]["conversion"]
        assert (conversion["channels"]["nuclei"], conversion["percentiles"]) == ("DAPI", [1.0, 99.0])

    def test_names_that_begin_with_a_dash(self, said, pictures, tmp_path, monkeypatch):  # fault 24
        monkeypatch.chdir(tmp_path)
        shutil.copy(pictures / "0.png", "-x.png")
        assert said("predict", "threshold", "-o", "out.json", "--", "-x.png")[0] == 0
        assert said("predict", "-o", "-y.json", "--", "threshold", "-x.png")[0] == 2, "an option's value needs ./"
        assert said("predict", "-o", "./-y.json", "--", "threshold", "-x.png")[0] == 0
        assert said("score", "--bootstrap", "0", "--", "-y.json", "-y.json")[0] == 0
        assert said("inspect", "--", "-x.png")[0] == 0
        write_labels(Path("-labels/-x.tif"), np.eye(128, dtype=np.int32))
        assert said("coco", "-o", "c.json", "--", "-labels")[0] == 0


class TestForms:
    def test_coco_and_labels_are_each_others_inverse(self, said, drawn, pictures, tmp_path):
        painted = [cells.paint() for cells in drawn.instances[:3]]
        for record, labels in zip(drawn.records, painted, strict=False):
            write_labels(tmp_path / "labels" / f"{record.image_id}.tif", labels)
        arguments = ("coco", tmp_path / "labels", "-o", tmp_path / "c.json", "--images", pictures, "--class", "HEK")
        assert said(*arguments)[0] == 0
        coco = read_coco(tmp_path / "c.json")
        assert coco.classes == ("HEK",)
        assert [record.path for record in coco.records] == ["0.png", "1.png", "2.png"]
        code, out, _ = said("labels", tmp_path / "c.json", "-o", tmp_path / "again")
        assert (code, out) == (0, f"{tmp_path / 'again'}: 3 label images\n")
        for record, labels in zip(drawn.records, painted, strict=False):
            assert np.array_equal(read_labels(tmp_path / "again" / f"{record.image_id}.tif"), labels)

    def test_submissions_have_no_overlap(self, said, tmp_path, drawn):
        both = Instances.from_masks([np.ones((2, 5), bool), np.eye(2, 5) > 0], (2, 5), scores=[0.5, 0.9])
        record = drawn.records[0].__class__("a", "a.png", 2, 5)
        write_coco(tmp_path / "p.json", [record], [both], (), with_scores=True)
        code, out, err = said("submit", tmp_path / "p.json", "--profile", "dsb2018", "-o", tmp_path / "s.csv")
        assert code == 0 and "1 image, 2 objects" in out
        assert "submit: 1 cell of 1 image lost pixels to higher scores (a)" in err
        assert (tmp_path / "s.csv").read_text().splitlines() == ["ImageId,EncodedPixels", "a,2 2 5 6", "a,1 1 4 1"]

    def test_every_test_image_needs_a_prediction(self, refused, truth, pictures, tmp_path):
        shutil.copytree(pictures, tmp_path / "test")
        shutil.copy(pictures / "0.png", tmp_path / "test/9.png")
        arguments = ("submit", truth, "--profile", "sartorius", "-o", tmp_path / "s.csv", "--images", tmp_path / "test")
        assert "1 test image without prediction, 0 predictions of none, e.g. 9" in refused(*arguments)
        assert not (tmp_path / "s.csv").exists()

    def test_check_submission(self, said, tmp_path):
        write_png(tmp_path / "test/a.png", np.zeros((2, 5, 3), np.uint8))
        (tmp_path / "s.csv").write_text("id,predicted\na,1 2\n")
        arguments = ("check-submission", tmp_path / "s.csv", "--profile", "sartorius")
        assert said(*arguments)[:2] == (
            0,
            f"{tmp_path / 's.csv'}: valid (ids, bounds, pixel order and picture size are not checked without --images)\n",
        )
        code, out, err = said(*arguments, "--images", tmp_path / "test", "--json")
        assert (code, json.loads(out)["valid"], err) == (0, True, "")
        (tmp_path / "s.csv").write_text("id,predicted\na,9 9\nb,\n")
        code, out, err = said(*arguments, "--images", tmp_path / "test", "--json")
        told = json.loads(out)
        assert (code, told["valid"], err) == (2, False, "")
        assert [problem["line"] for problem in told["problems"]] == [2, 3]
        assert "2 problems\n  line 2: " in said(*arguments, "--images", tmp_path / "test")[1]


class TestCheckAndDoctor:
    def test_a_run_that_never_ran(self, said, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.yaml").write_text("name: mine\n")
        (tmp_path / "runs/mine").mkdir(parents=True)
        code, out, err = said("check", "runs/mine", "mine.yaml", "--json")
        told = json.loads(out)
        assert (code, told["fresh"], err) == (0, False, "")
        assert [stage["state"] for stage in told["stages"]] == ["missing"] * 6
        assert said("check", "runs/mine", "mine.yaml")[1].splitlines()[0] == "missing  01_convert  (never run)"

    def test_doctor(self, said):
        code, out, err = said("doctor", "--json")
        told = json.loads(out)
        assert (code, told["ok"], out.count("\n"), err) == (0, True, 1, "")
        assert {item["name"] for item in told["backends"]} >= {"threshold", "cellpose_unet", "maskrcnn_torchvision"}
