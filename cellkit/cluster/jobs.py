"""Clusters of a queue: SLURM, LSF, PBS, SGE. Each worker is a job; dask-jobqueue writes its script and hands it in."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from cellkit.cluster.remote import THREADS
from cellkit.cluster.setting import ClusterSetting
from cellkit.errors import UserError
from cellkit.machine import KEPT_ARRAY_BYTES

COMMANDS = {  # by which a job is handed in, and by which it is taken back
    "slurm": ("sbatch", "scancel"),
    "lsf": ("bsub", "bkill"),
    "pbs": ("qsub", "qdel"),
    "sge": ("qsub", "qdel"),
}
CLASSES = {"slurm": "SLURMCluster", "lsf": "LSFCluster", "pbs": "PBSCluster", "sge": "SGECluster"}
MEMORY, WORKERS = "4 GB", 4
LOG_LINES = 8
LONELY_S = 60  # after which a worker that hears nothing of its scheduler ends


def check_commands(kind: str) -> None:
    """Refuse a queue whose commands this machine lacks.

    Raises
    ------
    UserError
        Naming the command.
    """
    missing = [name for name in COMMANDS[kind] if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"cluster {kind}: this machine has no command {' and no '.join(missing)}",
            "start it where jobs are handed in (a login node), or choose another cluster: local",
        )


def check_host(host: str) -> None:
    """Refuse a name or address by which nobody reaches this machine: the scheduler listens there.

    Raises
    ------
    UserError
        It is not known, or of another machine.
    """
    remedy = "name this machine as workers see it (hostname -f, or an address of ip addr), or leave cluster.host out"
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cluster.host is {host!r}, which is not found: {why}", remedy) from None
    for family, kind, protocol, _, address in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as tried:
            tried.bind(address)
            return
    raise UserError(f"cluster.host is {host!r} ({found[0][4][0]}), no address of this machine", remedy)


def job_options(setting: ClusterSetting, folder: Path) -> dict[str, Any]:
    """Return what dask-jobqueue is told of a job of this setting; its log goes to `folder`."""
    account = {"project" if setting.kind in ("lsf", "sge") else "account": setting.account}
    walltime = setting.walltime
    if setting.kind == "lsf" and walltime.count(":") == 2:  # LSF counts hours and minutes
        walltime = walltime.rpartition(":")[0]
    return {
        "cores": setting.cores,
        "memory": setting.memory or MEMORY,
        "processes": 1,
        "walltime": walltime,
        "queue": setting.queue,
        **account,
        "job_extra_directives": list(setting.directives),
        "job_script_prologue": prologue(setting),
        "log_directory": str(folder),
        "job_name": "cellkit",
        "death_timeout": LONELY_S,
        # one image at a time in each worker, and no page to look at: it would be open to all on that machine
        "worker_extra_args": ["--nthreads", "1", "--no-dashboard"],
        **({"use_stdin": True} if setting.kind == "lsf" else {}),
    }


def prologue(setting: ClusterSetting) -> list[str]:
    """Return the lines of shell before a worker starts: its threads, where the package is, then those of the setting."""
    lines = [f"export {name}={setting.cores}" for name in THREADS]
    lines += [
        f"export MALLOC_MMAP_THRESHOLD_={KEPT_ARRAY_BYTES} MALLOC_TRIM_THRESHOLD_={2 * KEPT_ARRAY_BYTES}",  # Dask's costs
        "export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'",
        "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False",
    ]
    if os.environ.get("PYTHONPATH"):
        import shlex

        places = [os.path.abspath(place) for place in os.environ["PYTHONPATH"].split(os.pathsep) if place]
        lines.append(f"export PYTHONPATH={shlex.quote(os.pathsep.join(places))}")
    return [*lines, *setting.prologue]


def open_jobs(setting: ClusterSetting, workers: int, folder: Path, security: Any) -> Any:
    """Start a scheduler here and hand in a job for each worker.

    Raises
    ------
    UserError
        The queue refuses the job.
    """
    before = signal.getsignal(signal.SIGINT)
    import dask_jobqueue

    signal.signal(signal.SIGINT, before)  # dask-jobqueue 0.9 makes Ctrl-C an exit with code 0
    host = {"host": setting.host} if setting.host else {}
    cluster = getattr(dask_jobqueue, CLASSES[setting.kind])(
        security=security,
        shared_temp_directory=str(folder),
        scheduler_options={"dashboard_address": "127.0.0.1:0", "allowed_failures": 0, **host},
        **job_options(setting, folder),
    )
    try:
        cluster.sync(ask_for, cluster, workers)
    except RuntimeError as error:
        text = str(error)
        error.__traceback__ = None  # it holds jobs that never began, over which the closing would stumble
        close(cluster)
        raise refused_job(setting.kind, text) from None
    return cluster


async def ask_for(cluster: Any, workers: int) -> None:
    """Start as many workers as are wanted, those that failed or ended again; what the queue says is raised here.

    `cluster.scale` would count a worker that failed while it started as one that is there, and lose what is raised.
    """
    from distributed.core import Status

    for name, worker in list(cluster.workers.items()):
        if worker.status in (Status.failed, Status.closed):
            del cluster.workers[name]
    while len(cluster.worker_spec) < workers:
        cluster.worker_spec.update(cluster.new_worker_spec())
    await cluster._correct_state()


def close(cluster: Any) -> None:
    """Close a cluster that was opened here: its workers, its jobs, its scheduler."""
    if hasattr(cluster, "_created"):
        cluster._created.clear()  # else it insists that a worker that never began has ended
    cluster.close(timeout=20)
    forget_keys(cluster)


def forget_keys(cluster: Any) -> None:
    """Remove the key files of a queue's cluster while their folder is there: dask-jobqueue leaves that to chance."""
    for name, file in vars(cluster).items():
        if name.startswith("_job_") and hasattr(file, "close"):
            file.close()


def refused_job(kind: str, text: str) -> UserError:
    """Return the error of a job that the queue did not take, with what it said."""
    said = re.search(r"stderr:\n(.*)", text, re.DOTALL)
    words = " ".join((said[1] if said else text).split())[:300] or "without a word"
    return UserError(
        f"cluster {kind}: {COMMANDS[kind][0]} did not take the job: {words}",
        "check queue, account, walltime, memory and directives of `cluster`",
    )


def log_tail(folder: Path) -> str:
    """Return the last lines of the job log that was written last; "" where there is none."""
    logs = [
        path for path in folder.iterdir() if path.is_file() and path.stat().st_size and not path.name.startswith(".")
    ]
    if not logs:
        return ""
    newest = max(logs, key=lambda path: path.stat().st_mtime)
    lines = newest.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-LOG_LINES:]
    return f"the last lines of {newest}:\n" + "\n".join(lines)
