"""What a person says of a cluster, and what is said where it cannot be had."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cellkit.cluster import kinds
from cellkit.cluster.opened import cluster_named, cluster_of, current
from cellkit.cluster.setting import CLUSTER_VARIABLE, ClusterSetting, read_setting
from cellkit.commands.main import main
from cellkit.config.reading import load_config
from cellkit.errors import UserError


def refusal(*given, **env) -> str:
    with pytest.raises(UserError) as caught:
        read_setting(*given, **env)
    return str(caught.value)


def test_a_word_keys_a_file_and_the_environment_say_the_same(tmp_path, monkeypatch):
    assert read_setting(None).is_none
    file = tmp_path / "mine.yaml"
    for text in ("kind: slurm\nworkers: 8\n", "cluster:\n  kind: slurm\n  workers: 8\n"):
        file.write_text(text)
        assert read_setting(str(file)) == ClusterSetting(kind="slurm", workers=8)
    monkeypatch.setenv(CLUSTER_VARIABLE, '{"kind": "slurm", "workers": 8}')
    assert read_setting(None) == read_setting({"kind": "slurm", "workers": 8})
    assert read_setting("slurm") == ClusterSetting(kind="slurm")


@pytest.mark.parametrize(
    ("text", "size"), [("8gb", "8 GB"), ("8G", "8 GB"), ("0.5 GiB", "0.5 GiB"), ("550 MB", "550 MB")]
)
def test_a_memory_is_read_as_one_writes_it(text, size):
    assert ClusterSetting(kind="local", memory=text).memory == size
    assert ClusterSetting(kind="slurm", walltime="2-12:00:00").walltime == "2-12:00:00"


def test_a_configuration_names_it_in_one_line(tmp_path, monkeypatch):
    file = tmp_path / "a.yaml"
    file.write_text("cluster: lsf\n")
    cfg = load_config(file)
    assert cfg.cluster == ClusterSetting(kind="lsf")
    monkeypatch.setattr(kinds, "check_commands", lambda kind: None)
    assert json.loads(cluster_named(cfg.cluster, 3))["workers"] == kinds.WORKERS
    file.write_text("cluster: {kind: local}\nworkers: 3\n")
    cfg = load_config(file)
    assert json.loads(cluster_named(cfg.cluster, cfg.workers))["workers"] == 3
    assert cfg.convert.fingerprint() == load_config(file, {"cluster": None}).convert.fingerprint()
    file.write_text("cluster: slrum\n")
    with pytest.raises(UserError, match="cluster.kind is 'slrum', wanted one of .*did you mean 'slurm'"):
        load_config(file)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("slrum", "(did you mean 'slurm'?)"),
        ({"kind": "slurm", "wokers": 2}, "has no key 'wokers' (did you mean 'workers'?)"),
        ({"kind": "slurm", "workers": 0}, "cluster.workers is 0"),
        ("{kind", "is not JSON"),
        ({"kind": "kubernetes", "volumes": ["images"]}, "cluster.volumes holds 'images'\nwanted a claim"),
        ("no.yaml", "'no.yaml': No such file"),
        ({"kind": "local", "memory": "4 Go"}, "cluster.memory is '4 Go'\nwanted a number and its unit"),
        ({"kind": "local", "memory": "8"}, "cluster.memory is '8'"),
        ({"kind": "local", "memory": "100 MB"}, "at least 256 MB"),
        ({"kind": "slurm", "walltime": "4 h"}, "cluster.walltime is '4 h'\nwanted hours, minutes and seconds"),
    ],
)
def test_what_is_not_known_is_named(value, said):
    assert said in refusal(value)


def test_what_is_missing_is_named_before_anything_is_begun(monkeypatch, tmp_path):
    def of(setting) -> str:
        with pytest.raises(UserError) as caught, cluster_of(setting):
            pass
        return str(caught.value)

    monkeypatch.setenv("PATH", str(tmp_path))
    assert of("slurm").startswith("cluster slurm: this machine has no command sbatch and no scancel\n")
    assert "no command bsub" in of("lsf") and "no command qsub" in of("pbs") and "no command qsub" in of("sge")
    assert "no scheduler file 'no.json'" in of("no.json")
    monkeypatch.setattr(kinds, "find_spec", lambda name: None if name in ("dask_jobqueue", "dask_kubernetes") else 1)
    assert of("slurm").startswith('cluster slurm needs dask-jobqueue\npip install "cloudpickle>=3" "cryptography')
    assert '"dask-kubernetes>=2025.1"' in of("kubernetes") and "jobqueue" not in of("kubernetes")
    monkeypatch.setattr(kinds, "find_spec", lambda name: 1)
    assert "no image is named" in of("kubernetes")
    assert current() is None


def test_where_nobody_answers(tmp_path, capfd):
    (tmp_path / "a.png").touch()
    command = ["convert", str(tmp_path), "-o", str(tmp_path / "out"), "--nuclei", "0", "--cluster"]
    assert main([*command, "tcp://127.0.0.1:1"]) == 2
    assert "no scheduler answers at 'tcp://127.0.0.1:1': [Errno" in capfd.readouterr().err
    assert main([*command, "tls://127.0.0.1:1"]) == 2
    assert "asks for keys, and none are set" in capfd.readouterr().err
    (tmp_path / "s.json").write_text("[]")
    assert main([*command, str(tmp_path / "s.json")]) == 2
    assert "is no scheduler's file" in capfd.readouterr().err


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_something_else_than_a_scheduler_is_not_waited_for(says, monkeypatch):
    monkeypatch.setattr(kinds, "ANSWER_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    heard.append(other.accept()[0])
                    heard[-1].sendall(says)

        heard: list[socket.socket] = []
        threading.Thread(target=answer, daemon=True).start()
        port, begun = other.getsockname()[1], time.monotonic()
        with pytest.raises(UserError, match=f"is no Dask scheduler.*\n.*8786 unless .* here it is {port}"):
            kinds.open_cluster(ClusterSetting(kind=f"tcp://127.0.0.1:{port}"), 1, Path())
        assert time.monotonic() - begun < 10
    for one in heard:
        one.close()


def test_pods_get_their_share_and_the_volumes():
    pytest.importorskip("dask_kubernetes")
    from cellkit.cluster.kubernetes import pods

    asked = ClusterSetting(kind="kubernetes", image="x/y", cores=2, memory="8 GB", volumes=("images:/data",))
    spec = pods(asked, 3, "cellkit-1")["spec"]
    assert spec["worker"]["replicas"] == 3
    (worker,) = spec["worker"]["spec"]["containers"]
    assert worker["image"] == "x/y" and worker["resources"]["limits"] == {"cpu": "2", "memory": "8G"}
    assert worker["volumeMounts"] == [{"name": "v0", "mountPath": "/data"}]
    assert spec["scheduler"]["spec"]["volumes"] == [{"name": "v0", "persistentVolumeClaim": {"claimName": "images"}}]
