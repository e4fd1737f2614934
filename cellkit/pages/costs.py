"""What a model of a run cost, as the manifest of the run tells it: CPU seconds, memory, and the notebooks that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cellkit.errors import counted
from cellkit.evaluate.cell_classes import CLASSED, kept_model
from cellkit.evaluate.evaluation import KEY
from cellkit.manifest import covered


def cost_of(stages: Mapping[str, Mapping[str, Any]], model: str) -> dict[str, Any]:
    """Return what a model cost, as the run's manifest tells it.

    Parameters
    ----------
    stages : mapping
        Entries of finished stages, by name.
    model : str

    Returns
    -------
    dict
        stage (its notebook), train_s (CPU seconds of its training; 0 = none), find_s (CPU seconds a megapixel, of outlines that
        another model found too), stage_s (of the notebook), whole_s (of all notebooks it needs, from the images on; of a model
        without training less those of others in its notebook), shared (nothing of single models is recorded: whole_s may be of
        several), peak_bytes (the most that its notebook held), device, resumed (a stage that went on where a killed one was
        counts only what came after). None: not recorded.
    """
    stage = stage_of(stages, model)
    if stage is None:
        keys = ("stage", "train_s", "find_s", "stage_s", "whole_s", "peak_bytes", "device")
        return dict.fromkeys(keys) | {"shared": False, "resumed": False}
    entry, needed = stages[stage], needed_stages(stages, stage)
    costs = entry.get("costs")
    train_s, whole_s = training_of(entry, model), total(stages[name].get("processor_s") for name in needed)
    if train_s == 0 and whole_s is not None:
        whole_s = round(whole_s - sum(of["train"]["processor_s"] for of in (costs or {}).values() if "train" in of), 1)
    return {
        "stage": stage,
        "train_s": train_s,
        "find_s": finding_of(stages, model),
        "stage_s": entry.get("processor_s"),
        "whole_s": whole_s,
        "shared": train_s is None and sum(key.startswith(KEY) for key in entry["outputs"]) > 1,
        "peak_bytes": entry.get("peak_bytes") or None,
        "device": device_of(entry),
        "resumed": any(stages[name].get("resumed", False) for name in needed),
    }


def bounded(row: Mapping[str, Any], key: str) -> str:
    """Return the CPU seconds of `cost_of` for print: ≥ where a part was not counted, ≤ where all may be of several models.

    Examples
    --------
    >>> bounded({"whole_s": 1234.5, "resumed": True, "shared": False}, "whole_s"), bounded({"whole_s": None}, "whole_s")
    ('≥ 1,234', '–')
    """
    if not row[key]:
        return "–"
    mark = "≥ " if row["resumed"] else "≤ " if row["shared"] and key == "whole_s" else ""
    return f"{mark}{row[key]:,.0f}"


def stage_of(stages: Mapping[str, Mapping[str, Any]], model: str) -> str | None:
    """Return the notebook that wrote a model's predictions, None where none did."""
    return next((name for name, entry in stages.items() if f"{KEY}{model}" in entry["outputs"]), None)


def finding_of(stages: Mapping[str, Mapping[str, Any]], model: str) -> float | None:
    """Return the CPU seconds a megapixel in which a model's cells are found; None where they, or a part, are not recorded.

    Cells with a class are those that the kept Cellpose model found: what these took is counted too.

    Examples
    --------
    >>> costs = {"unet": {"find": {"processor_s": 6.0, "mpx": 2.0}}}
    >>> finding_of({"11": {"outputs": {"predictions_unet": {}}, "costs": costs}}, "unet")
    3.0
    """
    find = ((stages.get(stage_of(stages, model)) or {}).get("costs") or {}).get(model, {}).get("find", {})
    own = round(find["processor_s"] / find["mpx"], 3) if find.get("mpx") else None
    if model != CLASSED or own is None:
        return own
    outputs = {key: value for entry in stages.values() for key, value in entry["outputs"].items()}
    checkpoints = {key: Path(value["path"]) for key, value in outputs.items() if key.endswith("checkpoint")}
    outlines = finding_of(stages, kept_model(checkpoints))
    return None if outlines is None else round(own + outlines, 3)


def training_of(entry: Mapping[str, Any], model: str) -> float | None:
    """Return the CPU seconds that a model's training took.

    A notebook that measures no training, and writes one model, trained that one: then it is all but what finding took.

    Examples
    --------
    >>> training_of({"costs": {"a": {"train": {"processor_s": 9.0}}}, "outputs": {"predictions_a": 0}}, "a")
    9.0
    >>> find = {"find": {"processor_s": 2.0, "mpx": 1.0}}
    >>> training_of({"costs": {"a": find}, "outputs": {"predictions_a": 0}, "processor_s": 10.0}, "a")
    8.0
    """
    costs = entry.get("costs")
    if not costs:
        return None
    trained = [name for name, of_model in costs.items() if "train" in of_model]
    if model in trained:
        return costs[model]["train"]["processor_s"]
    if trained:
        return 0.0
    made = [key for key in entry["outputs"] if key.startswith(KEY)]
    found_s = total(one["find"]["processor_s"] for one in costs.values() if "find" in one)
    return round(entry["processor_s"] - found_s, 3) if len(made) == 1 else None


def needed_stages(stages: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """Return a stage and all that it needs: those whose outputs it read, and theirs, sorted."""
    places = {output["path"]: stage for stage, entry in stages.items() for output in entry["outputs"].values()}
    needed, waiting = {name}, [name]
    while waiting:
        for value in stages[waiting.pop()].get("inputs", {}).values():
            read = next((stage for path, stage in places.items() if covered(value.get("path", ""), [path])), None)
            if read is not None and read not in needed and not value.get("outside"):
                needed.add(read)
                waiting.append(read)
    return sorted(needed)


def total(values: Iterable[float | None]) -> float | None:
    """Return the sum; None where one is not known."""
    known = list(values)
    return None if None in known else round(sum(known), 1)


def device_of(entry: Mapping[str, Any]) -> str:
    """Return what a stage was computed on, e.g. "cpu, float32, 1 thread"."""
    how = entry.get("arithmetic") or {}
    threads = [counted(how["threads"], "thread")] if how.get("threads") else []
    return ", ".join([str(entry.get("device", "")), *filter(None, [how.get("number_type")]), *threads])
