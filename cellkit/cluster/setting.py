"""What a person says of a cluster: one word, or a few keys; read from the configuration, a flag or the environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from cellkit.errors import UserError, nearest
from cellkit.settings import Frozen, Number, as_tuple

CLUSTER_VARIABLE = "CELLKIT_CLUSTER"
NONE = "none"
JOBS = ("slurm", "lsf", "pbs", "sge")  # started by the command of a queue
KINDS = (NONE, "local", *JOBS, "kubernetes")
WANTED = f"one of {', '.join(KINDS)}, the address of a scheduler (tls://host:8786) or its file (scheduler.json)"
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp])(i?)b?", re.IGNORECASE)
LEAST_BYTES = 256_000_000  # of a worker: what it imports takes about half of that
TIME = re.compile(r"(\d+-)?\d+(:[0-5]\d){0,2}")
FLAG = "local, slurm, lsf, pbs, sge, kubernetes, a scheduler's address or file, or a YAML file of the keys of `cluster`"


def is_address(kind: str) -> bool:
    """Tell whether a cluster is named by the address of its scheduler.

    Examples
    --------
    >>> is_address("tls://10.0.0.1:8786"), is_address("slurm")
    (True, False)
    """
    return "://" in kind


def is_file(kind: str) -> bool:
    """Tell whether a cluster is named by the file that its scheduler wrote.

    Examples
    --------
    >>> is_file("shared/scheduler.json"), is_file("slurm")
    (True, False)
    """
    return kind.endswith(".json")


Words = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]


class ClusterSetting(Frozen):
    """A cluster: its kind, and what a worker of it gets. A worker does one image at a time."""

    kind: str = Field(
        NONE,
        description="none (this machine, see workers), local, slurm, lsf, pbs, sge, kubernetes, the address of a scheduler "
        "that runs (tls://host:8786) or its file (scheduler.json)",
    )
    workers: int | None = Field(None, ge=1, description="workers asked for; null = one a core (local), else 4")
    cores: int = Field(1, ge=1, description="cores of a worker")
    memory: str | None = Field(
        None, description="memory of a worker, such as 8 GB; null = its share of this machine (local), else 4 GB"
    )
    walltime: str = Field("01:00:00", description="longest a job may take; a worker that is ended so is replaced")
    queue: str | None = Field(None, description="queue or partition of the jobs; null = the usual one")
    account: str | None = Field(None, description="account or project that the jobs count for; null = the usual one")
    directives: Words = Field((), description="more lines for the head of a job script, such as --gres=gpu:1")
    prologue: Words = Field((), description="lines of shell before a worker starts, such as module load cuda")
    image: str | None = Field(None, description="container image with this version of cellkit (kubernetes)")
    volumes: Words = Field(
        (), description="claims of volumes and where pods see them, such as images:/data (kubernetes)"
    )
    host: str | None = Field(None, description="name or address by which workers reach this machine; null = found out")
    wait_s: Number = Field(600.0, gt=0, description="longest wait for a worker (s)")
    folder: str | None = Field(
        None, description="folder that all machines share, for keys and job logs; null = ~/.cache/cellkit/cluster"
    )

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in KINDS and not is_address(value) and not is_file(value):
            raise ValueError(f"is {value!r}, wanted {WANTED}{nearest(value, KINDS)}")
        return value

    @field_validator("memory")
    @classmethod
    def _enough(cls, value: str | None) -> str | None:
        """Return it with its unit as Dask, queues and Kubernetes write it: 8 GB, 8 GiB."""
        if value is None:
            return None
        found = SIZE.fullmatch(value.strip())
        number, unit, binary = found.groups() if found else ("0", "k", "")
        size = float(number) * (1024 if binary else 1000) ** ("KMGTP".index(unit.upper()) + 1)
        if size < LEAST_BYTES:
            raise ValueError(f"is {value!r}, wanted a number and its unit, at least 256 MB, such as 8 GB")
        return f"{number} {unit.upper()}{'i' if binary else ''}B"

    @field_validator("walltime")
    @classmethod
    def _is_time(cls, value: str) -> str:
        if not TIME.fullmatch(value.strip()):
            raise ValueError(f"is {value!r}, wanted hours, minutes and seconds, such as 04:00:00")
        return value.strip()

    @field_validator("volumes")
    @classmethod
    def _with_place(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if not re.fullmatch(r"[a-z0-9.-]+:/.*", one):
                raise ValueError(f"holds {one!r}, wanted a claim and an absolute path, such as images:/data")
        return value

    @property
    def is_none(self) -> bool:
        """Whether no cluster is asked for."""
        return self.kind == NONE


def as_cluster(value: Any) -> Any:
    """Turn one word, as ``cluster: slurm`` has it, into the table it stands for; leave all else as it is.

    Examples
    --------
    >>> as_cluster("slurm"), as_cluster(None)
    ({'kind': 'slurm'}, {})
    """
    return {} if value is None else {"kind": value} if isinstance(value, str) else value


def read_setting(value: str | Mapping[str, Any] | ClusterSetting | None, origin: str = "cluster") -> ClusterSetting:
    """Return what is said of a cluster, checked.

    Parameters
    ----------
    value : str, mapping or ClusterSetting, optional
        A kind, address or scheduler file; the name of a YAML file of keys; JSON text of keys; or the keys. None: what
        the variable ``CELLKIT_CLUSTER`` says, and without one no cluster.
    origin : str
        What an error calls it: ``--cluster``.

    Raises
    ------
    UserError
        An unknown kind or key, a value out of range, a YAML file that cannot be read.

    Examples
    --------
    >>> read_setting("local").kind, read_setting({"kind": "slurm", "workers": 8}).workers
    ('local', 8)
    """
    if isinstance(value, ClusterSetting):
        return value
    if value is None:
        value, origin = os.environ.get(CLUSTER_VARIABLE) or NONE, CLUSTER_VARIABLE
    if isinstance(value, str):
        value = _keys_of(value, origin)
    try:
        return ClusterSetting.model_validate(as_cluster(value))
    except ValidationError as error:
        raise _explained(error, origin) from None


def _keys_of(text: str, origin: str) -> Any:
    """Return the keys that a text stands for: itself a kind, JSON, or the name of a YAML file."""
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise UserError(f"{origin} is not JSON: {error}", 'write {"kind": "slurm", "workers": 8}') from None
    if not text.endswith((".yaml", ".yml")):
        return {"kind": text}
    import yaml

    try:
        keys = yaml.safe_load(Path(text).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{origin}: '{text}': {error.strerror}", "name a YAML file of the keys of `cluster`") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{origin}: '{text}' is not YAML: {first}", "write it as kind: slurm") from None
    return keys["cluster"] if isinstance(keys, dict) and set(keys) == {"cluster"} else keys


def _explained(error: ValidationError, origin: str) -> UserError:
    """Return the first of pydantic's problems in two lines."""
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    fields = ClusterSetting.model_fields
    if first["type"] == "extra_forbidden":
        return UserError(f"{origin} has no key {key!r}{nearest(key, fields)}", f"keys: {', '.join(fields)}")
    if first["type"] == "value_error":
        problem, _, wanted = str(first["ctx"]["error"]).partition(", wanted ")
        return UserError(f"{origin}{'' if key == 'kind' else f'.{key}'} {problem}", f"wanted {wanted}")
    about = f"{key}: {fields[key].description}" if key in fields else "write a kind, such as slurm, or keys"
    return UserError(f"{origin}.{key} is {first['input']!r}: {first['msg']}".replace(". is", " is"), about)
