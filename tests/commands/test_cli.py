"""The command line: exit codes, two-line errors, JSON alone on stdout, quick to start."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import refused  # noqa: F401
from filelock import FileLock

from cellkit.commands import doctor
from cellkit.commands import main as cli
from cellkit.commands.main import find_commands
from cellkit.commands.shared import Answer, json_text
from cellkit.errors import UserError

HEAVY = (
    "numpy",
    "pydantic",
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
        assert "runs no notebook called '9'" in refused("run", config, "--only", "9")
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "", "-o", "out", "--nuclei", "0"],
        ["predict", "threshold", "", "-o", "p.json"],
        ["measure", "images", "", "-o", "e.csv"],
        ["coco", "", "-o", "e.json"],
        ["measure", "images", "labels", "-o", ""],
    ],
)
def test_an_empty_path_is_no_current_folder(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert "a path is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", [["coco", "labels"], ["submit", "p.json", "--profile", "sartorius"], ["fuse", "p.json"]]
)
@pytest.mark.parametrize("out", ["there", "new/"])
def test_a_file_is_not_written_where_a_folder_is_named(command, out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert cli.main([*command, "-o", out]) == 2
    assert f"-o {out} is a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
