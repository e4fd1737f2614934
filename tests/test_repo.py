"""The repository's own files agree with each other: set-up, locks, README, workflows, notebooks, weights."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repo_cases import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOLS = PYPROJECT["project"], PYPROJECT["tool"]

CONDA_NAMES = {"torch": "pytorch", "opencv-python-headless": "opencv"}

# Started, not imported: the kernel that runs notebooks, the window that opens them, the bar that tqdm draws there.
NOT_IMPORTED = {"ipykernel", "jupyterlab", "ipywidgets"}

CONDA_ONLY = {"python", "pip", "setuptools", "detectron2"}

PIN = re.compile(r"[a-z0-9.-]+==[0-9][0-9a-z.]*( ; [a-z_'\"0-9.<>=!*() A-Z]+)?")

HASH = re.compile(r" {4}--hash=sha256:[0-9a-f]{64}")

MOST_CELL_LINES = 5

MAX_WEIGHTS_BYTES = 14_000_000

# A path of one machine: a top-level folder of somebody's system and a name in it.
MACHINE_PATH = re.compile(r"(?<![\w.~/$}-])/(?:work|farm|root|home|Users|tmp|mnt|opt)/[\w.-]")

# An address of a package registry, by the options that carry one and by what the addresses look like.
REGISTRY = re.compile(
    r"--(?:extra-)?index-url|--find[-]links|https?://\S*/simple\b|https?://[^\s/]*(?:pypi|npmjs|mirror)"
)

# What would take cellkit from PyPI, where that name is somebody else's.
FOREIGN = re.compile(
    r"\b(?:pip|pipx|uv|conda|mamba) (?:install|add)(?: +-\S+)* +[\"'`]*cellkit(?:\[[\w,]+\])?(?=[\s\"'`)]|$)"
    r"|pkg:pypi[/]cellkit|^\s*- cellkit\s*$"
)


def name_of(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


def requirements(*extras: str) -> list[Requirement]:
    named = [PROJECT["optional-dependencies"][extra] for extra in extras] or [PROJECT["dependencies"]]
    return [Requirement(text) for texts in named for text in texts]


def tracked() -> list[Path]:
    """Return the files git tracks; skip where this is no checkout of its own."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--full-name"]
    top = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--show-toplevel"], capture_output=True, text=True)
    if top.returncode or Path(top.stdout.strip()).resolve() != ROOT.resolve():
        pytest.skip("not a git checkout")
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    return paths or pytest.skip("git tracks nothing yet")


def notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").rglob("*.ipynb"))


# ---- set-up --------------------------------------------------------------------------------------------------------


def conda() -> tuple[dict[str, Requirement], dict[str, Requirement]]:
    """Return what environment.yml takes from conda-forge and what from pip, by name; ``-e .`` is left out."""
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    fixed = [re.sub(r" =(?=\d)", " ==", text) for text in listed if isinstance(text, str)]
    pip = [text for part in listed if isinstance(part, dict) for text in part["pip"] if text != "-e ."]
    return tuple({name_of(r): r for r in map(Requirement, texts)} for texts in (fixed, pip))


@pytest.mark.parametrize("wanted", requirements(), ids=lambda r: r.name)
def test_environment_lists_every_dependency_with_its_bounds(wanted):
    forge, pip = conda()
    found = forge.get(CONDA_NAMES.get(wanted.name, wanted.name)) or pip.get(wanted.name)
    assert found is not None, f"environment.yml lacks {wanted}"
    assert found.specifier == wanted.specifier


def test_environment_lists_nothing_else_than_what_pip_is_told_not_to_install():
    forge, pip = conda()
    mine = {CONDA_NAMES.get(r.name, r.name) for r in requirements()}
    theirs = {
        CONDA_NAMES.get(canonicalize_name(r.name), canonicalize_name(r.name))
        for r in map(Requirement, metadata.requires("cellpose"))
        if r.marker is None
    }
    assert theirs <= mine | set(forge), "cellpose comes from pip without its dependencies: list them"
    assert set(forge) - mine - theirs == CONDA_ONLY
    assert set(pip) <= mine
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(
        next(iter(forge["python"].specifier)).version
    )


def pins(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [Requirement(line.removesuffix(" \\")) for line in lines if not line.startswith(" ")]


@pytest.mark.parametrize("name", ["lock.txt", "dev.txt", "docs.txt", "peers.txt"])
def test_locks_hold_pins_and_hashes_and_no_address(name):
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    odd = [
        line
        for line in lines
        if not PIN.fullmatch(line.removesuffix(" \\")) and not HASH.fullmatch(line.removesuffix(" \\"))
    ]
    assert not odd
    for line, following in zip(lines, [*lines[1:], "end"], strict=True):
        assert line.endswith(" \\") == following.startswith(" "), f"{line}: every pin has a hash, a hash ends a pin"
        assert HASH.match(line) or following.startswith(" "), f"{line} has no hash"


@pytest.mark.parametrize(
    ("wanted", "files"),
    [(r, ["lock.txt"]) for r in requirements()]
    + [(r, ["lock.txt", "dev.txt"]) for r in requirements("test", "bench", "lora", "export", "anndata", "tensorboard")]
    + [(r, ["lock.txt", "docs.txt"]) for r in requirements("docs")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_locked_versions_satisfy_pyproject(wanted, files):
    found = [pin for name in files for pin in pins(name) if name_of(pin) == canonicalize_name(wanted.name)]
    assert found, f"{wanted} is not locked: make lock"
    assert all(wanted.specifier.contains(next(iter(pin.specifier)).version) for pin in found)


@pytest.mark.parametrize("name", ["dev.txt", "docs.txt"])
def test_no_lock_repeats_what_runs(name):
    assert not {(name_of(p), str(p.marker)) for p in pins(name)} & {
        (name_of(p), str(p.marker)) for p in pins("lock.txt")
    }


def test_locks_agree_where_they_lock_the_same():
    """`make test` and `make docs` install into one environment, in any order."""
    dev, docs = ({(name_of(p), str(p.marker)): str(p.specifier) for p in pins(f)} for f in ("dev.txt", "docs.txt"))
    assert {key: dev[key] for key in dev.keys() & docs} == {key: docs[key] for key in dev.keys() & docs}


def test_one_version_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## \[([^]]+)]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    from cellkit import __version__

    assert PROJECT["dynamic"] == ["version"], "of the tag; where there is none, that of the code"
    assert TOOLS["setuptools_scm"]["fallback_version"] == __version__ == cited["version"] == newest
    assert PROJECT["license"] == cited["license"] == "MIT"


IN_EXTRAS = ("anndata", "app", "cluster", "czi", "kubernetes", "large", "lora", "export", "unet")


def test_declared_is_what_is_imported():
    """A dependency that nothing imports goes; what is imported is declared, not left to another package to bring."""
    from cellkit.microscope.open import READERS

    files = [path for folder in ("cellkit", "presentation") for path in sorted((ROOT / folder).rglob("*.py"))]
    own = {path.stem for path in files if "presentation" in path.parts} | {"cellkit"}
    imported = {reader.module.split(".")[0] for reader in READERS if reader.module}
    for path in files:
        imported |= imported_by(path.read_text(encoding="utf-8"))
    owners = metadata.packages_distributions()
    names = {canonicalize_name(owners.get(name, [name])[0]) for name in imported - own - set(sys.stdlib_module_names)}
    declared = {name_of(r) for r in requirements()}
    extras = {name_of(r) for r in requirements(*IN_EXTRAS)} - {"cryptography", "onnxruntime", "pydantic"}  # of others
    from_conda = {"detectron2"}  # no registry has it: environment.yml names it
    elsewhere = {"napari"}  # `cellkit view` opens it where it is installed, in an environment of its own
    assert names - declared == extras | from_conda | elsewhere, "imported and not declared, but for an extra"
    assert declared - names == NOT_IMPORTED, "declared and imported by nothing"


def imported_by(text: str) -> set[str]:
    """Return the top-level names a module imports, in functions too."""
    nodes = list(ast.walk(ast.parse(text)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.split(".")[0]
        for name in plain | {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    }


# ---- workflows and hooks -------------------------------------------------------------------------------------------


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())


def commands(flow: dict) -> list[str]:
    return [step["run"] for job in flow["jobs"].values() for step in job["steps"] if "run" in step]


def test_cpu_workflow_runs_both_commands_on_every_push():
    flow = workflow("tests.yml")
    assert {"push", "pull_request"} <= set(flow[True])  # YAML 1.1 reads the key `on` as true
    assert "bash .ci/run" in commands(flow)
    assert "make demo" in commands(flow)
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert all(allowed.contains(version) for version in flow["jobs"]["test"]["strategy"]["matrix"]["python"])


def test_gpu_workflow_is_scheduled_and_takes_its_runner_from_a_variable():
    flow = workflow("notebooks-gpu.yml")
    assert {"schedule", "workflow_dispatch"} == set(flow[True])
    (job,) = flow["jobs"].values()
    assert job["runs-on"] == "${{ vars.GPU_RUNNER }}"
    default = flow[True]["workflow_dispatch"]["inputs"]["config"]["default"]
    assert (ROOT / default).is_file()
    assert any('cellkit run "$CONFIG"' in command for command in commands(flow))
    assert default == "configs/sam.yaml" and ".venv/bin/cellkit fetch cpsam_v2" in commands(flow)


def test_audit_asks_about_every_lock():
    flow = workflow("audit.yml")
    assert {"schedule", "pull_request"} <= set(flow[True])
    (job,) = flow["jobs"].values()
    assert {f"{name}.txt" for name in job["strategy"]["matrix"]["lock"]} == {"lock.txt", "dev.txt", "docs.txt"}
    assert any("pip_audit --require-hashes" in command for command in commands(flow))


def test_the_bill_of_materials_is_the_lock(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from sbom import bill_of

    text = (ROOT / "requirements" / "lock.txt").read_text()
    bill = bill_of(text, "1.2.3")
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6") and bill == bill_of(text, "1.2.3")
    found = {(part["name"], part["version"]) for part in bill["components"]}
    assert found == {(name_of(pin), next(iter(pin.specifier)).version) for pin in pins("lock.txt")}
    hashes = [one["content"] for part in bill["components"] for one in part["externalReferences"][0]["hashes"]]
    assert hashes == re.findall("sha256:([0-9a-f]{64})", text)
    assert bill["metadata"]["component"]["purl"] == "pkg:generic/cellkit@1.2.3"  # pypi's cellkit is another
    assert "sbom.py requirements/lock.txt" in " ".join(commands(workflow("release.yml")))


def test_hooks_run_from_the_environment_alone():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    entries = [hook["entry"].split()[0] for repo in config["repos"] for hook in repo["hooks"]]
    assert {".venv/bin/ruff", ".venv/bin/nbstripout"} == set(entries)


# ---- what is committed ---------------------------------------------------------------------------------------------


def test_no_machine_path_and_no_registry_address_is_committed():
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.split("\n"), 1):
            hit = MACHINE_PATH.search(line) or REGISTRY.search(line)
            if hit:
                found.append(f"{path.relative_to(ROOT)}:{number}: ...{line[max(hit.start() - 20, 0) : hit.end() + 20]}")
    assert found == []


def test_nobody_is_told_to_install_the_other_package_of_that_name():
    """PyPI has a package cellkit that is somebody else's: what is installed is a folder, a wheel or other packages."""
    found = []
    for path in tracked():
        if path.suffix in (".py", ".md", ".yml", ".yaml", ".nf", ".config", ".sh", ".ipynb", ".json", ".toml"):
            lines = path.read_text(encoding="utf-8").split("\n") if path.name != "CHANGELOG.md" else []
            found += [f"{path.relative_to(ROOT)}: {line.strip()[:100]}" for line in lines if FOREIGN.search(line)]
    assert found == []
    for text in (
        'pip install "cell' + 'kit[app]"',
        "pip install -U cell" + "kit",
        "  - cell" + "kit",
        "pkg:py" + "pi/cellkit@1",
    ):
        assert FOREIGN.search(text)
    assert not FOREIGN.search("pip install cellkit-VERSION-py3-none-any.whl") and not FOREIGN.search(
        "pip install '.[app]'"
    )
    assert "somebody else's" in (ROOT / "docs" / "set-up.md").read_text(encoding="utf-8")


def test_what_a_message_says_to_install_is_what_the_extra_brings():
    told = {
        "anndata": "measure/spatial.py",
        "app": "pages/app/server.py",
        "cluster": "cluster/kinds.py",
        "export": "export/onnx_graph.py",
        "kubernetes": "cluster/kinds.py",
        "large": "cells/windows.py",
        "parquet": "measure/images.py",
        "tensorboard": "models/curves.py",
        "unet": "models/unet_border.py",
    }
    for extra, name in told.items():
        line = "pip install " + " ".join(f'"{wanted}"' for wanted in PROJECT["optional-dependencies"][extra])
        assert line in (ROOT / "cellkit" / name).read_text(encoding="utf-8"), line


@pytest.mark.parametrize(
    "text", ["cd /{}/a", '"/{}/me/x.tif"', "data: /{}/cells", "(/{}/x)"], ids=["shell", "quoted", "yaml", "bracket"]
)
def test_a_machine_path_would_be_found(text):
    assert all(MACHINE_PATH.search(text.format(name)) for name in ("work", "root", "home", "tmp"))
    assert not any(
        MACHINE_PATH.search(text) for text in ("runs/home/a", "../work/x", "https://a.org/home/b", "~/home/x")
    )


def test_a_registry_address_would_be_found():
    found = [
        "--" + "index-url x",
        "--" + "extra-index-url=x",
        "https://" + "example.org/simple/",
        "https://" + "a.pypi.b/c",
    ]
    assert all(REGISTRY.search(text) for text in found)
    assert not any(REGISTRY.search(text) for text in ("--no-emit-index-url", "https://example.org/a", "simple"))


def test_no_large_file_is_committed():
    large = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in tracked()}
    assert {name for name, size in large.items() if size > 1_500_000} <= {
        name for name in large if name.startswith("cellkit/starter/")
    }


def test_starter_weights_are_small_and_what_their_card_says():
    from cellkit.models.weights import read_card

    paths = sorted((ROOT / "cellkit" / "starter").glob("*.safetensors"))
    assert [path.stem for path in paths] == ["starter", "starter_light"]
    for path in paths:
        assert path.stat().st_size <= MAX_WEIGHTS_BYTES
        card = read_card(path)
        assert (card.backend, "CC0" in card.licence) == ("cellpose_unet", True)


# ---- notebooks -----------------------------------------------------------------------------------------------------


def source_of(cell: dict) -> str:
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def test_the_six_notebooks_are_there():
    from cellkit.config.sections import STAGES

    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == sorted(STAGES)


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_notebooks_are_thin_and_stripped(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert source_of(cells[0]).startswith("# "), "a notebook begins with its title"
    assert [cell["outputs"] for cell in code if cell["outputs"]] == []
    assert {cell["execution_count"] for cell in code} == {None}
    tags = [cell["metadata"].get("tags", []) for cell in code]
    assert sum("parameters" in tag for tag in tags) == 1
    assert "parameters" in tags[0], "the parameters come first"
    for cell in code:
        lines = [line for line in source_of(cell).split("\n") if line.strip()]
        is_set_up = "hosted.sh" in source_of(cell)  # the same in all: it installs cellkit on Colab and Kaggle
        assert len(lines) <= MOST_CELL_LINES or is_set_up, f"{len(lines)} lines: {lines[0]}"
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        nodes = list(ast.walk(ast.parse(source_of(cell))))
        assert not [node for node in nodes if isinstance(node, kinds)], lines[0]
        told = [node for node in nodes if isinstance(node, ast.Assert) and node.msg]
        assert not told, f"what data can cause is a UserError, or a sentence and the run goes on: {lines[0]}"


PUZZLES = (ast.Lambda, ast.NamedExpr, ast.Starred)


def puzzles_of(source: str) -> list[str]:
    """Return what a reader who is no programmer would stop at: next(), model_copy(), lambda, walrus, splat, nesting."""
    nodes = list(ast.walk(ast.parse(source)))
    called = {getattr(node.func, "id", getattr(node.func, "attr", "")) for node in nodes if isinstance(node, ast.Call)}
    loops = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    nested = [
        node for node in nodes if isinstance(node, loops) and sum(isinstance(n, loops) for n in ast.walk(node)) > 1
    ]
    ends = [node for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple | ast.IfExp)]
    kinds = [type(node).__name__ for node in [*nodes, *nested, *ends] if isinstance(node, PUZZLES)]
    return [*sorted(called & {"next", "model_copy"}), *kinds, *map(ast.unparse, [*nested, *ends])]


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_notebooks_say_what_a_cell_does_and_hold_no_puzzles(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert cells[-1]["cell_type"] == "markdown", "the last cell says what comes next"
    for before, cell in zip(cells, cells[1:], strict=False):
        source = source_of(cell)
        first = "parameters" in cell["metadata"].get("tags", [])
        assert cell["cell_type"] == "markdown" or first or before["cell_type"] == "markdown", f"no sentence: {source}"
        assert cell["cell_type"] == "markdown" or puzzles_of(source) == []


@pytest.mark.parametrize(
    "source",
    ["next(x)", "c.model_copy(update={})", "f(*x)", "a, len(a)", "a if b else c", "[[y for y in x] for x in z]"],
)
def test_a_puzzle_would_be_found(source):
    assert puzzles_of(source)
    assert not puzzles_of("print(f'{len(a)}')\nfor k, v in a.items():\n    v.done(**b)")
