"""A sweep on a two-node Ray cluster on loopback gives the tables of the local engine, also when a node is killed in the middle."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from stand_ins import TARGET, StandIn, plan
from tiny_runs import HELPERS

from replication.errors import UserError
from replication.runs import RunSummary
from replication.sweep import ray, run_plan
from replication.sweep.queue import RunQueue
from replication.tables import build_tables, write_tables


def tables(planned, folder: Path, out: Path) -> dict[str, bytes]:
    write_tables(build_tables(planned, folder), out, {})
    return {name: (out / f"{name}.csv").read_bytes() for name in ("runs", "curves", "items")}


@pytest.fixture
def cluster(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed (extra `cluster`)")
    from ray.cluster_utils import Cluster

    # Nodes inherit it: their workers find the stand-ins, as those of a real cluster find the installed project.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    yield made, made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    made.shutdown()


@pytest.mark.slow
def test_a_node_killed_in_the_middle_costs_nothing(cluster, tmp_path):
    nodes, second = cluster
    planned = plan(*[StandIn(seed=seed, steps=80, seconds_per_step=0.1) for seed in range(3)])
    folders = [tmp_path / "ray" / run.config.run_id for run in planned]

    def kill_a_node() -> None:
        while len([f for f in folders if len(list(f.glob("checkpoints/step-*"))) == 2]) < 2:
            time.sleep(0.05)
        (raylet,) = second.all_processes["raylet"]
        workers = Path(f"/proc/{raylet.process.pid}/task/{raylet.process.pid}/children").read_text().split()
        nodes.remove_node(second, allow_graceful=False)
        for pid in workers:  # a machine that is gone takes its workers with it; here they would live on for a while
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    result = run_plan(planned, tmp_path / "ray", engine="ray", address=nodes.address, target=TARGET)
    killer.join()
    assert result.ok and not result.failed
    starts = [(folder / "run.log").read_text().count("training ") for folder in folders]
    assert max(starts) >= 2, "the node that was killed had a run, which another node took up"
    assert run_plan(planned, tmp_path / "local", workers=2, target=TARGET).ok
    assert tables(planned, tmp_path / "ray", tmp_path / "a") == tables(planned, tmp_path / "local", tmp_path / "b")


def where(config: StandIn, folder: Path):
    """A target that says where it was called."""
    return RunSummary(run_id=config.run_id, status="done", reason=os.getcwd())


def test_a_relative_path_means_the_same_on_every_node(tmp_path, monkeypatch):
    """SVAMP=data/SVAMP.json was once looked for in whatever folder the node's Ray had been started in."""
    sweeps, node = tmp_path / "sweep", tmp_path / "node"
    for folder in (sweeps, node):
        folder.mkdir()
    monkeypatch.chdir(node)
    answer = functools.partial(ray._one_run, f"{__name__}:where", StandIn(), str(tmp_path / "run"))
    assert answer(str(sweeps)) == ("done", str(sweeps)) and Path.cwd() == node
    assert answer(str(tmp_path / "not on this node")) == ("done", str(node))


def test_a_gpu_is_looked_for_in_the_cluster_and_chosen_by_no_number(tmp_path, monkeypatch):
    class Ray:
        remote = staticmethod(lambda function: function)
        cluster_resources = staticmethod(lambda: {"CPU": 8.0})

    queue = RunQueue(plan(StandIn(device="cuda")), tmp_path)
    with pytest.raises(UserError, match="GPU: the cluster has none, and device=cuda was asked for"):
        ray._run(Ray, queue, TARGET)
    for engine in ("local", "ray"):
        with pytest.raises(UserError, match="device=cuda:1: .* set device=cuda, and CUDA_VISIBLE_DEVICES=1 to use only that one"):
            run_plan(plan(StandIn(device="cuda:1")), tmp_path, engine=engine)


def test_a_missing_ray_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"install it with `pip install -e '\.\[cluster\]'`"):
        run_plan(plan(StandIn()), tmp_path, engine="ray")
