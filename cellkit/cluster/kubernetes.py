"""Workers as pods of Kubernetes, by the operator of dask-kubernetes."""

from __future__ import annotations

import os
from typing import Any

from cellkit.cluster.jobs import MEMORY
from cellkit.cluster.remote import THREADS
from cellkit.cluster.setting import ClusterSetting


def pods(setting: ClusterSetting, workers: int, name: str) -> dict[str, Any]:
    """Return what the operator is asked for: a scheduler and workers, with the volumes of the setting mounted in each.

    Parameters
    ----------
    setting : ClusterSetting
        Its image holds this version of cellkit; its volumes are claims, ``"images:/data"``, with the place they get.
    workers : int
    name : str
        Of the cluster in Kubernetes.

    Returns
    -------
    dict
        A resource DaskCluster.
    """
    from dask_kubernetes.operator import make_cluster_spec

    share = {"cpu": str(setting.cores), "memory": (setting.memory or MEMORY).replace(" ", "").rstrip("B")}
    spec = make_cluster_spec(
        name,
        image=setting.image,
        n_workers=workers,
        resources={"requests": share, "limits": share},
        env={**dict.fromkeys(THREADS, str(setting.cores)), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"},
        worker_command=["dask", "worker", "--nthreads", "1"],
    )
    places = dict(one.split(":", 1) for one in setting.volumes)
    claims = {f"v{k}": claim for k, claim in enumerate(places)}
    for part in ("scheduler", "worker"):
        pod = spec["spec"][part]["spec"]
        pod["volumes"] = [{"name": v, "persistentVolumeClaim": {"claimName": claim}} for v, claim in claims.items()]
        pod["containers"][0]["volumeMounts"] = [{"name": v, "mountPath": places[claim]} for v, claim in claims.items()]
    return spec


def open_pods(setting: ClusterSetting, workers: int) -> Any:
    """Start a scheduler and workers in pods; the Kubernetes cluster has to have the operator."""
    from dask_kubernetes.operator import KubeCluster

    spec = pods(setting, workers, f"cellkit-{os.getpid()}")
    return KubeCluster(custom_cluster_spec=spec, quiet=True)
