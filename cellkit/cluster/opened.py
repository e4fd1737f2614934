"""The cluster that is open here: opened at the first loop, once, and closed with the command or the notebook."""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cellkit.cluster import remote
from cellkit.cluster.jobs import COMMANDS, close, log_tail
from cellkit.cluster.kinds import ask_again, check_cluster, default_workers, open_cluster
from cellkit.cluster.leftovers import owned, sweep_keys
from cellkit.cluster.setting import CLUSTER_VARIABLE, ClusterSetting, read_setting
from cellkit.errors import UserError, counted
from cellkit.log import LOG

REPLACE_EVERY_S = 10.0  # jobs that ended are handed in again
_NOW: list[Cluster | None] = []  # the innermost last


class Cluster:
    """A cluster by its setting; workers are asked for at the first loop.

    Attributes
    ----------
    setting : ClusterSetting
    workers : int
        How many are asked for.
    client : distributed.Client or None
        None until the first loop.
    """

    def __init__(self, setting: ClusterSetting, workers: int = 1):
        check_cluster(setting)
        self.setting, self.workers = setting, default_workers(setting, workers)
        self.client: Any = None
        self._cluster: Any = None
        self._folder: Path | None = None
        self._asked = 0.0
        self._said: int | None = None

    @property
    def is_elsewhere(self) -> bool:
        """Whether its workers may be on other machines."""
        return self.setting.kind != "local"

    def open(self) -> None:
        """Start it, or join it, and wait for the first worker; nothing where it is open.

        Raises
        ------
        UserError
            No worker came up in time; or as `cellkit.cluster.kinds.open_cluster`.
        """
        if self.client is not None:
            return
        if self.is_elsewhere:
            home = Path(self.setting.folder or "~/.cache/cellkit/cluster").expanduser()
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            sweep_keys(home)
            self._folder = Path(tempfile.mkdtemp(prefix=owned(), dir=home))  # for us alone: it gets keys
        self._said = logging.getLogger("asyncio").level
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of a worker that fails while it starts: started again
        try:
            self._cluster, self.client = open_cluster(self.setting, self.workers, self._folder or Path())
            self._asked = time.monotonic()
            threads = self.wait()
        except BaseException:
            self.close()
            raise
        LOG.info(f"cluster {self.setting.kind}: {counted(len(threads), 'worker')} of {self.workers}, more may come")
        if max(threads.values()) > 1:
            LOG.warning(
                f"cluster {self.setting.kind}: a worker has {max(threads.values())} threads, and does one item at a time: "
                "start more workers, each with --nthreads 1"
            )

    def wait(self) -> dict[str, int]:
        """Wait until there is a worker; return the threads of each by its address.

        Raises
        ------
        UserError
            None came within `wait_s`: how many were asked for, and the last lines of the job log.
        """
        begun = time.monotonic()
        while not (threads := self.threads()):
            if time.monotonic() - begun > self.setting.wait_s:
                asked = f"{counted(self.workers, 'was', 'were')} asked for" if self._cluster else "it has none"
                told = log_tail(self._folder) if self._folder else ""
                if told:
                    LOG.warning(told)
                kind = self.setting.kind
                see = "see the lines of the job log above, " if told else ""
                queue = (
                    f"ask the queue ({COMMANDS[kind][0]}) why the jobs wait" if kind in COMMANDS else "start workers"
                )
                raise UserError(
                    f"cluster {kind}: no worker within {self.setting.wait_s:g} s; {asked}",
                    f"{see}{queue}, or raise cluster.wait_s",
                )
            time.sleep(0.1)
        return threads

    def threads(self) -> dict[str, int]:
        """Return the threads of each worker that is there, by its address; hand in anew what has ended."""
        found = dict(self.client.nthreads())
        if self._cluster is not None and len(found) < self.workers:
            now = time.monotonic()
            if now - self._asked > REPLACE_EVERY_S:
                self._asked = now
                ask_again(self._cluster, self.workers)
        return found

    def close(self) -> None:
        """Give back workers and jobs; one that ran before us goes on. Job logs stay where no worker ever came."""
        client, cluster, folder = self.client, self._cluster, self._folder
        self.client = self._cluster = self._folder = None
        with suppress(Exception):  # nothing is lost with it
            if client is not None:
                client.close(timeout=5)
        with suppress(Exception):
            if cluster is not None:
                close(cluster)
        if self._said is not None:
            logging.getLogger("asyncio").setLevel(self._said)
            self._said = None
        if folder is not None and (client is not None or not log_tail(folder)):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def cluster_of(setting: str | Mapping[str, Any] | ClusterSetting | None = None, workers: int = 1) -> Iterator[None]:
    """Let every loop inside the block run on a cluster, which is opened at the first of them and closed at the end.

    Parameters
    ----------
    setting : str, mapping or ClusterSetting, optional
        As `cellkit.cluster.setting.read_setting`; None is what ``CELLKIT_CLUSTER`` says, "none" no cluster whatever it says.
    workers : int
        How many are asked for where the setting does not say: that of the command.

    Raises
    ------
    UserError
        An unknown setting, a package or a command that is missing; inside the block what opening it says.
    """
    found = read_setting(setting, CLUSTER_VARIABLE if setting is None else "--cluster")
    cluster = None if found.is_none else Cluster(found, workers)
    _NOW.append(cluster)
    try:
        yield
    finally:
        _NOW.remove(cluster)
        if cluster is not None:
            cluster.close()


def cluster_named(setting: ClusterSetting, workers: int = 1) -> str:
    """Return what ``CELLKIT_CLUSTER`` has to say that another process opens this cluster; "" for none.

    Parameters
    ----------
    setting : ClusterSetting
        Of the configuration; where it names none, what the variable says here.
    workers : int
        As in `cluster_of`.

    Raises
    ------
    UserError
        As `cluster_of`.
    """
    found = read_setting(None) if setting.is_none else setting
    check_cluster(found)
    if found.is_none:
        return ""
    found = found.model_copy(update={"workers": default_workers(found, workers)})
    return json.dumps(found.model_dump(mode="json"))


def current() -> Cluster | None:
    """Return the cluster that loops run on here: of the block, or of ``CELLKIT_CLUSTER``, which closes when we end.

    Raises
    ------
    UserError
        What the variable says is not known, or cannot be had here.
    """
    if remote.IS_WORKER:
        return None
    if not _NOW and os.environ.get(CLUSTER_VARIABLE):
        found = read_setting(None)
        if not found.is_none:
            _NOW.append(cluster := Cluster(found))
            atexit.register(cluster.close)
    return _NOW[-1] if _NOW else None
