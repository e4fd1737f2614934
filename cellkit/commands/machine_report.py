"""What this machine can run: device, memory, versions, backends, weights, data; and what to do about the rest."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from cellkit.config.sections import BACKEND_SECTIONS
from cellkit.errors import UserError, counted
from cellkit.fetch.find import PACKAGED
from cellkit.machine import arithmetic, memory, to_gb

STARTER, FLOOR = "starter", "threshold"


def examine(folder: str | Path = ".", config: str | Path | None = None) -> dict[str, Any]:
    """Look at everything; imports what the backends need, so it takes some seconds.

    Parameters
    ----------
    folder : path
        Where runs will be written: its free space is what counts.
    config : path, optional
        A configuration whose run is forecast; the first time its backends are timed, for half a minute.

    Returns
    -------
    dict
        Plain values, ready for JSON: ok (the default path runs: versions, default backends, starter weights, disk; and the
        run of the configuration would not be refused), problems (each {"problem", "remedy"}), python, platform, cellkit,
        device, memory, disk, packages, backends, weights, formats, data; and of a configuration forecast, {stage: its
        `Forecast`}, recipes, in words those that are not counted, unfit, why the run would be refused, each as a problem,
        and said, what it is warned of.
    """
    forecast = check_forecast(config) if config is not None else {}
    packages, backends, weights = check_packages(), check_backends(), check_weights()
    found: dict[str, Any] = {
        "ok": True,
        "problems": [],
        "cellkit": _version("cellkit"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": check_device(),
        "memory": memory(),
        "disk": check_disk(folder),
        "packages": packages,
        "backends": backends,
        "weights": weights,
        "formats": check_formats(),
        "data": check_data(),
        **forecast,
    }
    usual = {FLOOR, *(kind.model_fields["backend"].default for kind in BACKEND_SECTIONS.values())}
    checks = [found["disk"], *packages, *[b for b in backends if b["name"] in usual], *weights]
    if STARTER not in [item["name"] for item in weights]:
        checks.append(
            _item(STARTER, "the starter weights are missing", "install cellkit again, or: git checkout cellkit/starter")
        )
    found["problems"] = [{key: item[key] for key in ("problem", "remedy")} for item in checks if not item["ok"]]
    found["problems"] += found.get("unfit", [])
    found["ok"] = not found["problems"]
    return found


def _item(name: str, problem: str = "", remedy: str = "", **facts: Any) -> dict[str, Any]:
    return {"name": name, "ok": not problem, "problem": problem, "remedy": remedy, **facts}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# ---- the machine ---------------------------------------------------------------------------------------------------
def check_device() -> dict[str, Any]:
    """Return the device models run on, the number type, and the processors this process may use."""
    from joblib import cpu_count

    device_info: dict[str, Any] = {
        "name": "cpu",
        "kind": "cpu",
        "number_type": None,
        "bfloat16": False,
        "cpus": cpu_count(),
    }
    try:
        import torch

        chosen = arithmetic()
        device = chosen.device
    except Exception as error:  # reported once more with the backends, with what to do
        return device_info | {"problem": f"{type(error).__name__}: {error}"}
    device_info |= {
        "kind": device.type,
        "number_type": chosen.number_type,
        "bfloat16": chosen.number_type == "bfloat16",
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(0)
        device_info |= {
            "name": f"cuda: {about.name}",
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gb": to_gb(about.total_memory),
        }
    elif device.type != "cpu":
        device_info["name"] = device.type
    return device_info | {"threads": torch.get_num_threads()}


def check_disk(folder: str | Path) -> dict[str, Any]:
    """Return the space that is free where runs are written."""
    from cellkit.manifest import MIN_FREE_BYTES

    about = shutil.disk_usage(folder)
    free, enough = about.free, about.free >= MIN_FREE_BYTES or not about.total  # some disks do not say their size
    problem = "" if enough else f"{free / 1e6:.0f} MB are free on the disk of {Path(folder).resolve()}"
    return _item(
        "disk", problem, f"free at least {MIN_FREE_BYTES / 1e6:.0f} MB" if problem else "", free_gb=to_gb(free)
    )


# ---- what is installed ---------------------------------------------------------------------------------------------
def check_packages(package: str = "cellkit") -> list[dict[str, Any]]:
    """Compare the versions of Python and of every required package with what pyproject.toml asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        wanted_python = SpecifierSet(metadata.metadata(package)["Requires-Python"] or "")
        requirements = [Requirement(text) for text in metadata.requires(package) or []]
    except metadata.PackageNotFoundError:
        return [
            _item(package, f"{package} is not installed", "pip install -e . in its checkout", installed=None, wanted="")
        ]
    listed = [
        _compared(
            "python", platform.python_version(), wanted_python, "use a Python of that version: make PYTHON=python3.12"
        )
    ]
    for requirement in sorted(requirements, key=lambda r: r.name.lower()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            remedy = f"pip install '{requirement.name}{requirement.specifier}'"
            listed.append(_compared(requirement.name, _version(requirement.name), requirement.specifier, remedy))
    return listed


def _compared(name: str, installed: str | None, wanted: Any, remedy: str) -> dict[str, Any]:
    problem = f"{name} is not installed, {wanted} is wanted" if installed is None else ""
    if installed is not None and not wanted.contains(installed, prereleases=True):
        problem = f"{name} is {installed}, {wanted} is wanted"
    return _item(name, problem, remedy if problem else "", installed=installed, wanted=str(wanted))


def check_backends() -> list[dict[str, Any]]:
    """Try every backend: whether it can be imported, and the line that installs what it lacks."""
    from cellkit.models import backend_names, get_backend, install_line

    listed = []
    for name in backend_names():
        try:
            get_backend(name)
            listed.append(_item(name))
        except UserError as error:
            listed.append(_item(name, error.problem, error.remedy))
        except Exception as error:  # an installed package that does not import
            again = install_line(name).replace("install", "install --force-reinstall")
            listed.append(_item(name, f"backend '{name}' fails: {type(error).__name__}: {error}", again))
    return listed


def check_formats() -> list[dict[str, Any]]:
    """Try the readers of microscope files that need a package of their own; TIFF, PNG and JPEG need none."""
    from cellkit.microscope.open import READERS

    listed = []
    for reader in (one for one in READERS if one.module):
        facts = {"kind": reader.kind, "package": reader.package, "installed": _version(reader.package)}
        try:
            reader.library(f"*{reader.suffixes[0]}")
            listed.append(_item(reader.name, **facts))
        except UserError as error:
            listed.append(_item(reader.name, error.problem, error.remedy, **facts))
    return listed


def check_weights() -> list[dict[str, Any]]:
    """Verify the weights that come with the package against the sha256 of their cards."""
    from cellkit.models import weights

    listed = []
    for path in sorted(PACKAGED.glob("*.safetensors")):
        facts = {"megabytes": round(path.stat().st_size / 1e6, 1)}
        try:
            card = weights.read_card(path)
            listed.append(_item(path.stem, backend=card.backend, licence=card.licence, sha256=card.sha256, **facts))
        except UserError as error:
            listed.append(_item(path.stem, error.problem, error.remedy, **facts))
    return listed


def check_data() -> dict[str, Any]:
    """Tell whether the environment names a folder of real data; drawn cells need none."""
    from cellkit.machine import DATA_VARIABLE

    value = os.environ.get(DATA_VARIABLE)
    problem = f"{DATA_VARIABLE} is '{value}', no such folder" if value and not Path(value).is_dir() else ""
    return _item(DATA_VARIABLE, problem, f"set {DATA_VARIABLE} to a folder" if problem else "", value=value)


def check_forecast(config: str | Path) -> dict[str, Any]:
    """Return what the notebooks of a configuration's run will take here.

    Returns
    -------
    dict
        forecast, by stage; {} where that cannot be told; recipes, in words those that are not counted; unfit, for what of
        memory, that of the GPU, and disk the run would be refused, each {"problem", "remedy"}; said, what it is warned of.
        The forecast is of all notebooks; refused is what those are too large for that its run folder lacks.

    Raises
    ------
    UserError
        It is no configuration, or one with errors; or its run folder cannot be read.
    """
    from cellkit.config.reading import load_config
    from cellkit.forecast.fits import reasons_against
    from cellkit.forecast.stages import Plan, uncounted
    from cellkit.forecast.words import noted, uncounted_in_words
    from cellkit.manifest import Hasher, read_manifest
    from cellkit.run.notebooks import notebooks_of
    from cellkit.run.preflight import check_run
    from cellkit.run.stale import stage_states

    cfg = load_config(config)
    outlook = check_run(cfg)
    if errors := outlook.errors():
        raise UserError(errors[0].problem, f"{errors[0].remedy}; `cellkit check {config}` lists all that is wrong")
    books = notebooks_of(cfg)
    names = [book.name for book in books]
    plan = Plan.of(cfg, names, outlook.records, outlook.instances, sample=outlook.sample)
    told = plan.forecast()
    states = stage_states(outlook.run_dir, cfg, books, read_manifest(outlook.run_dir), Hasher())
    left = [one.name for one in states if one.state != "fresh"]
    done = len(left) < len(names)
    if done:
        plan = Plan.of(cfg, left, outlook.records, outlook.instances, sample=outlook.sample)
    refused, said = reasons_against(plan.forecast() if done else told, plan, outlook.run_dir)
    if done:
        what = f"{', '.join(left)} of it" if left else "nothing of it"
        said.append(f"the forecast is of a run from the beginning; {outlook.run_dir} has {what} left to run")
    unfit = [{"problem": error.problem, "remedy": error.remedy} for error in refused]
    recipes = uncounted_in_words(books, uncounted(cfg, names))
    return {"forecast": noted(told), "recipes": recipes, "unfit": unfit, "said": said}


# ---- in words ------------------------------------------------------------------------------------------------------
def report_text(found: dict[str, Any]) -> str:
    """Return what `examine` found, in words."""
    device, memory, disk, data = (found[key] for key in ("device", "memory", "disk", "data"))
    gpu = f", {device['gpu_memory_gb']} GB" if "gpu_memory_gb" in device else ""
    threads = f", {counted(device['threads'], 'thread')}" if "threads" in device else ""
    number = device["number_type"] or device.get("problem", "")
    lines = [
        f"cellkit  {found['cellkit']} on Python {found['python']}, {found['platform']}",
        f"device   {device['name']}{gpu}, computes in {number}; {counted(device['cpus'], 'processor')}{threads}",
        *_arithmetic(device["number_type"]),
        f"memory   {memory['free_gb']} of {memory['total_gb']} GB free; disk {disk['free_gb']} GB free",
        f"data     {data['problem'] or _data_line(data)}",
        _packages_line(found["packages"]),
    ]
    lines += [f"backend  {b['name']:<22} {_state(b)}" for b in found["backends"]]
    lines += [f"weights  {w['name']:<22} {_state(w)}" for w in found["weights"]]
    lines += [f"format   {f['kind']:<22} {_state(f)}" for f in found["formats"]]
    lines += _forecast_lines(found["forecast"]) if "forecast" in found else []
    lines += [f"recipes  {found['recipes']}"] if found.get("recipes") else []
    lines += [f"note     {text}" for text in found.get("said", [])]
    lines += [f"problem  {p['problem']}\n         -> {p['remedy']}" for p in found["problems"]]
    return "\n".join([*lines, _verdict(found)])


def _verdict(found: dict[str, Any]) -> str:
    """Say whether the default path can run, and where the run of a configuration would be refused, that."""
    unfit = found.get("unfit", [])
    if len(found["problems"]) > len(unfit):
        return "the default path cannot run yet"
    return "all the default path needs is here" + (", but this run would be refused" if unfit else "")


def _arithmetic(number_type: str | None) -> list[str]:
    """Say that scores of another number type are not these to the last digit; nothing where it is float32."""
    if number_type in (None, "float32"):
        return []
    why = f"{number_type} here, float32 on other processors: hardly a cell differs, but scores do in the third digit"
    return [f"note     {why}; a checkpoint's card names its own; precision: float32 computes alike everywhere"]


def _forecast_lines(told: dict[str, dict[str, float]]) -> list[str]:
    from cellkit.forecast.stages import Forecast
    from cellkit.forecast.words import in_words
    from cellkit.room import size_text
    from cellkit.run.console import span

    if not told:
        return ["forecast cannot be told: nothing is known of the images"]
    stages = {name: Forecast(**one) for name, one in told.items()}
    took = {name: "not timed" if one.seconds is None else span(one.seconds) for name, one in stages.items()}
    each = [
        f"         {name:<22} {took[name]}, {to_gb(one.peak_bytes)} GB"
        + f", disk {size_text(one.disk_bytes)}" * bool(one.disk_bytes)
        for name, one in stages.items()
    ]
    return [f"forecast {in_words(stages)}, if nothing else runs on it", *each]


def _data_line(data: dict[str, Any]) -> str:
    if data["value"]:
        return f"{data['name']} is {data['value']}"
    return f"{data['name']} is not set: configurations of real images need it, or data: in the file"


def _packages_line(packages: list[dict[str, Any]]) -> str:
    shown = {item["name"]: item["installed"] for item in packages}
    names = [f"{name} {shown[name]}" for name in ("torch", "torchvision", "cellpose", "numpy") if shown.get(name)]
    wrong = sum(not item["ok"] for item in packages)
    return f"packages {', '.join(names)}; {len(packages) - wrong} of {len(packages)} as wanted"


def _state(item: dict[str, Any]) -> str:
    return "ok" if item["ok"] else f"{item['problem']} -> {item['remedy']}"
