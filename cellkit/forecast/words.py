"""A forecast in words, as the manifest has it, and beside what a stage took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from cellkit.forecast.stages import Forecast
from cellkit.machine import GB
from cellkit.room import size_text

TOOK = {"seconds": "off", "peak_bytes": "memory_off", "disk_bytes": "disk_off"}  # what is compared, under which name


class Book(Protocol):
    """A notebook, by its name and the minutes that it says it takes."""

    name: str
    minutes: float | None


def whole(found: Mapping[str, Forecast]) -> Forecast:
    """Return the forecast of a whole run: seconds add up, memory is the most of a stage, disk that of what stays and is at work.

    Examples
    --------
    >>> one, other = Forecast(60, 1e9, 0, 5e6, 4e6, 3), Forecast(40, 2e9, 0, 9e6, 1e6, 2)
    >>> whole({"01_convert": one, "04_cells_to_coco": other})
    Forecast(seconds=100, peak_bytes=2000000000.0, gpu_bytes=0, disk_bytes=13000000.0, kept_bytes=5000000.0, files=5)
    """
    stages = list(found.values())
    told = [one.seconds for one in stages]
    stayed, most = 0.0, 0.0
    for one in stages:
        most, stayed = max(most, stayed + one.disk_bytes), stayed + one.kept_bytes
    return Forecast(
        None if None in told else sum(told),
        max((one.peak_bytes for one in stages), default=0),
        max((one.gpu_bytes for one in stages), default=0),
        most,
        stayed,
        sum(one.files for one in stages),
    )


def in_words(found: Mapping[str, Forecast]) -> str:
    """Return a forecast in a line.

    Examples
    --------
    >>> in_words({"03_finetune_cellpose": Forecast(500, 2.1e9), "06_evaluate_map_iou": Forecast(40, 4e8)})
    'about 9 min on this computer, 2.1 GB'
    >>> in_words({"03_finetune_cellpose": Forecast(9000, 2.1e9, 12e9, 340e6)})
    'about 2.5 h on this computer, 2.1 GB, and 12.0 GB of its GPU; 340 MB of disk'
    >>> in_words({"03_finetune_cellpose": Forecast(None, 2.1e9)})
    'not timed, too little is trained; 2.1 GB'
    """
    all_of_it = whole(found)
    on_gpu = f", and {all_of_it.gpu_bytes / GB:.1f} GB of its GPU" * (all_of_it.gpu_bytes > 0)
    disk = f"; {size_text(all_of_it.disk_bytes)} of disk" * (all_of_it.disk_bytes > 0)
    begin = f"about {time_text(all_of_it.seconds)} on this computer, " if all_of_it.seconds is not None else NOT_TIMED
    return f"{begin}{all_of_it.peak_bytes / GB:.1f} GB{on_gpu}{disk}"


NOT_TIMED = "not timed, too little is trained; "


def time_text(seconds: float) -> str:
    """Return seconds in words of a forecast.

    Examples
    --------
    >>> time_text(7), time_text(100), time_text(540), time_text(9000)
    ('10 s', '100 s', '9 min', '2.5 h')
    """
    if seconds < 115:
        return f"{max(round(seconds, -1), 10):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def uncounted_in_words(books: Iterable[Book], names: Iterable[str]) -> str:
    """Return that these notebooks are not counted, and what they say of their time; "" where there are none.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> books = [SimpleNamespace(name="large_cells", minutes=4), SimpleNamespace(name="01_convert", minutes=0.2)]
    >>> uncounted_in_words(books, ["large_cells"])
    'not counted: large_cells (about 4 min on two cores, as its notebook says), as nothing says what it costs'
    >>> uncounted_in_words(books, [])
    ''
    """
    names = set(names)
    own = [
        book.name + f" (about {book.minutes:g} min on two cores, as its notebook says)" * bool(book.minutes)
        for book in books
        if book.name in names
    ]
    return (
        f"not counted: {', '.join(own)}, as nothing says what {'they cost' if len(own) > 1 else 'it costs'}"
        if own
        else ""
    )


def noted(found: Mapping[str, Forecast]) -> dict[str, dict[str, float | None]]:
    """Return a forecast as the manifest has it."""
    return {name: asdict(one) for name, one in found.items()}


def compared(forecast: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the forecast of a stage with what it took, as its manifest entry says, and by how much it was off.

    Off by -0.1 is a forecast of nine tenths of what was taken. `off` is that of the seconds; `undisturbed_off` that of the
    seconds it would have taken had nothing else run, which is what is forecast; `memory_off`, `disk_off`.

    Examples
    --------
    >>> found = compared({"seconds": 90.0, "peak_bytes": 2e9}, {"seconds": 100.0, "peak_bytes": 1e9})
    >>> found["off"], found["memory_off"]
    (-0.1, 1.0)
    """
    keys = (*TOOK, "undisturbed_s", "kept_bytes")
    taken = {f"took_{key}": entry[key] for key in keys if entry.get(key) is not None}
    least = {"seconds": 0.1}
    errors = {
        name: round(forecast[key] / max(entry[key], least.get(key, 1.0)) - 1, 3)
        for key, name in TOOK.items()
        if forecast.get(key) and entry.get(key) is not None
    }
    if forecast.get("seconds") and entry.get("undisturbed_s"):
        errors["undisturbed_off"] = round(forecast["seconds"] / max(entry["undisturbed_s"], 0.1) - 1, 3)
    return {**forecast, **taken, **errors}


def summed_up(told: Mapping[str, Mapping[str, Any]]) -> str:
    """Return in a line what a run was forecast to take and took, of the stages of which both are noted; "" where none is.

    Examples
    --------
    >>> one = {"seconds": 90.0, "peak_bytes": 2e9, "disk_bytes": 2e7, "took_seconds": 100.0, "took_peak_bytes": 1e9}
    >>> summed_up({"01_convert": one | {"took_disk_bytes": 1e7}})
    'forecast 90 s, took 100 s; memory 2.0 GB, 1.0 GB; disk 20 MB, 10 MB'
    """
    done = [one for one in told.values() if "took_seconds" in one]
    timed = [one for one in done if one.get("seconds")]
    parts = []
    if timed:
        sums = [sum(one[key] for one in timed) for key in ("seconds", "took_seconds")]
        parts.append(f"forecast {time_text(sums[0])}, took {time_text(sums[1])}")
    for key, name, total in (("peak_bytes", "memory", max), ("disk_bytes", "disk", sum)):
        both = [(one[key], one[f"took_{key}"]) for one in done if one.get(key) and one.get(f"took_{key}") is not None]
        if both:
            said, took = (total(values) for values in zip(*both, strict=True))
            parts.append(f"{name} {size_text(said)}, {size_text(took)}")
    text = "; ".join(parts)
    return text if timed or not parts else f"forecast, and taken: {text}"
