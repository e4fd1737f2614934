"""The kinds of cluster: this machine, a queue, Kubernetes, a scheduler that runs already."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cellkit.cluster.jobs import COMMANDS, WORKERS, ask_for, check_commands, check_host, open_jobs
from cellkit.cluster.kubernetes import open_pods
from cellkit.cluster.remote import THREADS
from cellkit.cluster.setting import ClusterSetting, is_address, is_file
from cellkit.errors import UserError
from cellkit.log import LOG
from cellkit.room import memory_of

NEEDS = {"local": ("distributed", "cryptography"), "kubernetes": ("distributed", "dask_kubernetes")}
INSTALL = {  # what the extras of these names bring
    "cluster": 'pip install "cloudpickle>=3" "cryptography>=43" "dask-jobqueue>=0.9" "distributed>=2025.1"',
    "kubernetes": 'pip install "cryptography>=43" "dask-kubernetes>=2025.1" "distributed>=2025.1"',
}
ANSWER_S = 30.0  # within which a scheduler says who it is
NEEDS |= dict.fromkeys(COMMANDS, ("distributed", "dask_jobqueue", "cryptography"))


def check_cluster(setting: ClusterSetting) -> None:
    """Refuse a cluster that cannot be had here, before anything is begun.

    Raises
    ------
    UserError
        A package, a command, an image or a scheduler's file is missing; this machine has no such host name.
    """
    if setting.is_none:
        return
    missing = [name.replace("_", "-") for name in NEEDS.get(setting.kind, ("distributed",)) if find_spec(name) is None]
    if missing:
        install = INSTALL["kubernetes" if setting.kind == "kubernetes" else "cluster"]
        raise UserError(f"cluster {setting.kind} needs {', '.join(missing)}", install)
    if setting.kind in COMMANDS:
        check_commands(setting.kind)
        if setting.host:
            check_host(setting.host)
    if setting.kind == "kubernetes" and not setting.image:
        raise UserError(
            "cluster kubernetes: no image is named",
            "set cluster.image to a container image with this version of cellkit (the Containerfile builds one)",
        )
    if setting.volumes and setting.kind != "kubernetes":
        raise UserError(
            f"cluster {setting.kind} mounts no volumes", "leave cluster.volumes out: machines share folders"
        )
    if is_file(setting.kind) and not Path(setting.kind).expanduser().is_file():
        raise UserError(
            f"cluster: no scheduler file '{setting.kind}'",
            "start one: dask scheduler --scheduler-file scheduler.json, then workers with the same file",
        )


def default_workers(setting: ClusterSetting, workers: int) -> int:
    """Return how many workers are asked for: by the setting, else by the command (`workers` > 1), else the usual number."""
    if setting.workers:
        return setting.workers
    if setting.kind == "local":
        return workers if workers > 1 else max(1, (os.cpu_count() or 1) // setting.cores)
    return WORKERS


def open_cluster(setting: ClusterSetting, workers: int, folder: Path) -> tuple[Any, Any]:
    """Start a cluster, or join one that runs.

    Parameters
    ----------
    setting : ClusterSetting
        Checked by `check_cluster`.
    workers : int
        How many are asked for; a cluster that runs already has those that it has.
    folder : Path
        Seen by all machines: keys, job logs.

    Returns
    -------
    cluster : distributed.deploy.Cluster or None
        None where it runs already, and goes on when we are done.
    client : distributed.Client

    Raises
    ------
    UserError
        The queue refuses the job, or no scheduler answers.
    """
    import dask
    from distributed import Client
    from distributed.security import Security

    if is_address(setting.kind) or is_file(setting.kind):
        return None, _join(setting)
    dask.config.set({"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []})  # no pages
    dask.config.set({"distributed.worker.profile.enabled": False})  # a hundred looks a second at what a worker does
    dask.config.set(
        {"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}
    )  # makes a network cost half more
    if setting.kind == "kubernetes":
        cluster = open_pods(setting, workers)
        return cluster, Client(cluster, set_as_default=False)
    security = Security.temporary()  # keys that this command makes and nobody else knows
    if setting.kind == "local":
        cluster = _open_local(setting, workers, security)
    else:
        cluster = open_jobs(setting, workers, folder, security)
    return cluster, Client(cluster, set_as_default=False)


def _open_local(setting: ClusterSetting, workers: int, security: Any) -> Any:
    """Start workers on this machine: processes that listen to this machine alone, with keys, as others may be logged in."""
    from distributed import LocalCluster

    cluster = LocalCluster(
        n_workers=0,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        protocol="tls://",
        security=security,
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
        memory_limit=setting.memory or memory_of().total // workers,
        env=dict.fromkeys(THREADS, str(setting.cores)),
        scheduler_kwargs={"allowed_failures": 0},
        silence_logs=logging.CRITICAL,
    )
    ask_again(cluster, workers)  # not in the call above, which would fail with a single worker that is killed meanwhile
    return cluster


def ask_again(cluster: Any, workers: int) -> None:
    """Have workers that ended started again, while we go on."""

    async def ask() -> None:
        with suppress(Exception):  # asked again later; what the queue says to the first job is raised there
            await ask_for(cluster, workers)

    if hasattr(cluster, "worker_spec"):
        cluster.loop.add_callback(ask)
    else:  # Kubernetes
        cluster.scale(workers)


def _join(setting: ClusterSetting) -> Any:
    """Join a scheduler that runs. It is knocked at first: a client that nobody answers cannot be closed without a fuss."""
    import json

    from distributed import Client

    address = setting.kind
    if is_file(address):
        try:
            address = json.loads(Path(address).expanduser().read_text())["address"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"'{setting.kind}' is no scheduler's file", "dask scheduler --scheduler-file writes one"
            ) from None
    _knock(address)
    _ask_who_it_is(address)
    client = Client(address, timeout=ANSWER_S, set_as_default=False)
    if address.startswith("tcp://") and not address.startswith(("tcp://127.", "tcp://localhost")):
        LOG.warning(f"the scheduler at {address} uses no keys: whoever reaches it can run code as you; use tls://")
    return client


def _ask_who_it_is(address: str) -> None:
    """Refuse an address where something else than a scheduler listens: Dask's client would wait for its answer without end."""
    import asyncio
    import threading

    from distributed.core import rpc
    from distributed.security import Security

    told: list[dict[str, Any]] = []

    async def ask() -> None:
        async with rpc(address, connection_args=Security().get_connection_args("client")) as other:
            told.append(await asyncio.wait_for(other.identity(), ANSWER_S))

    def asked() -> None:
        with suppress(Exception):  # whatever it is that answers, or does not
            asyncio.run(asyncio.wait_for(ask(), ANSWER_S))

    thread = threading.Thread(target=asked, daemon=True)  # a notebook has a loop of its own under way
    thread.start()
    thread.join(ANSWER_S + 1)
    if not told or told[0].get("type") != "Scheduler":
        port = address.rpartition(":")[2]
        raise UserError(
            f"cluster: what listens at '{address}' is no Dask scheduler, or does not answer as one within {ANSWER_S:g} s",
            f"check the port: a scheduler's is 8786 unless it was told another, here it is {port} (8787 is its web page)",
        )


def _knock(address: str) -> None:
    """Refuse an address where nobody listens, or where keys are needed that are not set."""
    import socket

    from distributed.comm.addressing import parse_host_port
    from distributed.security import Security

    if address.startswith("tls://") and not Security().get_connection_args("client").get("ssl_context"):
        raise UserError(
            f"cluster: {address} asks for keys, and none are set",
            "name them in Dask's configuration: distributed.comm.tls.ca-file, and client.key and client.cert below it",
        )
    try:
        socket.create_connection(parse_host_port(address.partition("://")[2]), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"cluster: no scheduler answers at '{address}': {error}",
            "check that it runs, and its address (host and port)",
        ) from error
