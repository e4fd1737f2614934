"""What cannot fit into memory or disk is refused before it begins, with a setting under which its forecast fits, or none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellkit.errors import UserError
from cellkit.fetch.registry import cache_folder
from cellkit.forecast.smaller import Planned, smaller_in_memory, smaller_on_disk
from cellkit.forecast.stages import Forecast
from cellkit.forecast.words import whole
from cellkit.machine import RESERVE_BYTES, gpu_free_bytes
from cellkit.room import Disk, Memory, check_disks, disk_of, memory_of, reserved, size_text

CACHE_BYTES = 1e6  # speeds and ratios that are kept
TEMPORARY_BYTES = 20e6  # logs and parts of files while a stage runs
TEMPORARY_FILES = 50
GO_ON = "--force begins all the same"


def check_fits(
    found: Mapping[str, Forecast], plan: Planned, folder: Path, memory: Memory | None = None, freed_bytes: float = 0
) -> list[str]:
    """Refuse a run whose forecast does not fit into what is free of memory or disk; return what to warn of.

    Parameters
    ----------
    found : mapping
        Stage -> its forecast.
    plan : Plan, or one of several trainings
        What it is the forecast of: it tells the forecast under other settings, to say under which it fits.
    folder : Path
        Of the run.
    memory : Memory, optional
        What is free; default that of this machine.
    freed_bytes : float
        Of the run's own files, which are deleted before it begins.

    Raises
    ------
    UserError
        What is needed, what is free, and what would fit.
    """
    if not found:
        return []
    said = check_memory_of(found, plan, memory or memory_of())
    check_gpu_of(found, plan)
    check_disk_of(found, plan, folder, freed_bytes)
    return said


def reasons_against(
    found: Mapping[str, Forecast], plan: Planned, folder: Path, memory: Memory | None = None
) -> tuple[list[UserError], list[str]]:
    """Return all that `check_fits` would refuse a run for, where it names the first, and what to warn of; parameters as there."""
    refused, said = [], []
    if not found:
        return refused, said
    checks = (
        lambda: said.extend(check_memory_of(found, plan, memory or memory_of())),
        lambda: check_gpu_of(found, plan),
        lambda: check_disk_of(found, plan, folder),
    )
    for check in checks:
        try:
            check()
        except UserError as error:
            refused.append(error)
    return refused, said


def check_memory_of(found: Mapping[str, Forecast], plan: Planned, memory: Memory) -> list[str]:
    """Refuse a run that needs more memory than is free with swap; return the warning of one that needs swap.

    Raises
    ------
    UserError
        As `check_fits`.
    """
    stage, most = max(found.items(), key=lambda one: one[1].peak_bytes)
    if most.peak_bytes <= memory.free:
        return []
    limit = f" within {memory.limited_by}" if memory.limited_by != "this computer" else ""
    needs = f"{stage} takes about {size_text(most.peak_bytes)} of memory, {size_text(memory.free)} are free{limit}"
    if most.peak_bytes <= memory.free + memory.swap:
        return [f"{needs}: the rest would be swapped, which makes it many times slower"]
    change = first_that_fits(smaller_in_memory(plan), plan, lambda one: one.peak_bytes <= memory.free)
    none = (
        "no smaller steps, images or fewer of them make it fit: end other programs, or use a machine with more memory"
    )
    raise UserError(needs, f"{change or none}; {GO_ON}")


def check_gpu_of(found: Mapping[str, Forecast], plan: Planned, free_bytes: Callable[[], int] = gpu_free_bytes) -> None:
    """Refuse a run that needs more memory of the GPU than is free; without a GPU none is forecast.

    Raises
    ------
    UserError
        As `check_fits`.
    """
    stage, most = max(found.items(), key=lambda one: one[1].gpu_bytes)
    if not most.gpu_bytes or most.gpu_bytes <= (free := free_bytes()):
        return
    change = first_that_fits(smaller_in_memory(plan), plan, lambda one: one.gpu_bytes <= free)
    needs = f"{stage} takes about {size_text(most.gpu_bytes)} of the memory of the GPU, {size_text(free)} are free"
    raise UserError(
        needs, f"{change or 'no smaller steps make it fit: end other programs on it, or use a larger one'}; {GO_ON}"
    )


def check_disk_of(found: Mapping[str, Forecast], plan: Planned, folder: Path, freed_bytes: float = 0) -> None:
    """Refuse a run for which its file system, that of temporary files or that of the cache has no room.

    Raises
    ------
    UserError
        As `check_fits`.
    """
    all_of_it, disks = whole(found), places(folder)
    disks[0] = replace(disks[0], free_bytes=round(disks[0].free_bytes + freed_bytes))
    needs = needs_of(disks, all_of_it.disk_bytes, all_of_it.files)
    others = sum(size for disk, size, _ in needs[1:] if disk.device == disks[0].device)
    room = disks[0].free_bytes - RESERVE_BYTES - others
    change, elsewhere = "", f"free space, or name a folder on another disk with --run; {GO_ON}"
    if all_of_it.disk_bytes > room:
        change = first_that_fits(smaller_on_disk(plan), plan, lambda one: one.disk_bytes <= room)
        change = change or "no fewer or smaller images make it fit"
    check_disks(needs, f"{change}; {elsewhere}" if change else elsewhere)
    if not freed_bytes and not reserved(disks[0].folder, int(all_of_it.disk_bytes)):
        what = f"the run folder ({folder}) needs about {size_text(all_of_it.disk_bytes)}"
        raise UserError(f"{what}, which a quota there does not give", elsewhere)


def first_that_fits(changes: Iterable[Mapping[str, Any]], plan: Planned, fits: Callable[[Forecast], bool]) -> str:
    """Return in words the first change of settings under which the forecast fits, and what it takes then; "" where none does."""
    for change in changes:
        found = plan.under(change).forecast()
        if found and fits(all_of_it := whole(found)):
            took = f"{size_text(all_of_it.peak_bytes)} of memory, {size_text(all_of_it.disk_bytes)} of disk"
            return f"it fits with {', '.join(f'{key}: {value}' for key, value in change.items())} ({took})"
    return ""


def check_stage_disk(name: str, told: Forecast, folder: Path) -> None:
    """Refuse to begin a stage for which the disk has no room any more: between stages nothing is lost.

    Raises
    ------
    UserError
        With what is free, and what it needs.
    """
    remedy = "free space there and repeat the command: what is done is kept; --force begins all the same"
    try:
        check_disks(needs_of(places(folder), told.disk_bytes, told.files), remedy)
    except UserError as error:
        raise UserError(f"{name} is not begun: {error.problem}", error.remedy) from None


def places(folder: Path) -> list[Disk]:
    """Return the file systems that a run writes to: of its folder, of temporary files, of the cache."""
    return [
        disk_of("the run folder", folder),
        disk_of("the folder of temporary files", tempfile.gettempdir()),
        disk_of("the cache", cache_folder()),
    ]


def needs_of(disks: list[Disk], run_bytes: float, run_files: int) -> list[tuple[Disk, float, int]]:
    """Return what a run needs of each place, with the reserve that is left free; a cache that cannot be written is not needed."""
    run, temporary, cache = disks
    needs = [(run, run_bytes + RESERVE_BYTES, run_files), (temporary, TEMPORARY_BYTES, TEMPORARY_FILES)]
    roomy = cache.free_bytes > CACHE_BYTES and not cache.read_only  # else nothing is kept there, and nothing is lost
    return [*needs, (cache, CACHE_BYTES, 2)] if roomy else needs
