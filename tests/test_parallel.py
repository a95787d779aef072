"""Several processes on one run give what one gives, up to the order of float sums, and leave one process's records."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import lines, noisy_rewards, steps, tiny_config

from replication import parallel, train
from replication.__main__ import main
from replication.config import make_config
from replication.errors import Diverged

TESTS = Path(__file__).resolve().parent
#: Uneven on purpose: five groups and five batches of items on two processes, and every term of the loss.
SETTINGS = {
    "kind": "s_grpo", "prompts_per_step": 5, "eval_items": 9, "test_items": 9, "eval_batch_size": 2, "beta": 0.05, "l2": 0.01,
    "scoring_tokens": 100,
}  # fmt: skip


def launched(function: str, folder: Path, world: int = 2) -> list[subprocess.CompletedProcess]:
    """The function of this file in ``world`` processes that know of each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(TESTS)}
    common |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", f"import test_parallel; test_parallel.{function}({str(folder)!r})"],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    done = []
    for process in started:
        out, err = process.communicate(timeout=900)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def train_there(folder: str) -> None:
    """What each process runs."""
    with pytest.MonkeyPatch.context() as patch:
        noisy_rewards(patch)
        config = make_config(**json.loads((Path(folder) / "config.json").read_text()))
        # Stopped once, so that going on from the first process's checkpoint is part of it.
        if parallel.rank() == 1:
            original, calls = train.stop_requested, []
            patch.setattr(train, "stop_requested", lambda: calls.append(1) or (15 if len(calls) == 2 else original()))
        try:
            train.run(config, Path(folder) / "two", progress=False)
        except train.Stopped:
            print("stopped")
        train.run(config, Path(folder) / "two", progress=False)
        # Afterwards every process gets the finished summary.
        print(train.run(config, Path(folder) / "two").run_id)


def diverge_there(folder: str) -> None:
    parallel.start("cpu")

    def work(items):
        if parallel.rank() == 1:
            raise Diverged("only here")
        return items

    try:
        parallel.share(work, [1, 2, 3])
    except Diverged as error:
        print(error)
    print(parallel.share(lambda items: [item + 1 for item in items], [1, 2, 3]), parallel.from_first(parallel.rank()))


@pytest.mark.slow
def test_two_processes_give_what_one_gives(random_base, tmp_path, monkeypatch):
    config = tiny_config(random_base, **SETTINGS)
    noisy_rewards(monkeypatch)
    train.run(config, tmp_path / "one", progress=False)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    done = launched("train_there", tmp_path)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert [process.stdout.split() for process in done] == [["stopped", config.run_id]] * 2

    one, two = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert len(one) == len(two) == config.steps and any(row["loss"] for row in one)
    for here, there in zip(one, two, strict=True):
        assert here == pytest.approx(there, rel=1e-4, abs=1e-6)
    weights = [load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("one", "two")]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)
    assert (tmp_path / "one/items.csv").read_bytes() == (tmp_path / "two/items.csv").read_bytes()
    assert lines(tmp_path / "one", "samples.jsonl") == lines(tmp_path / "two", "samples.jsonl")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two")]
    assert [manifest["processes"] for manifest in manifests] == [1, 2]


@pytest.mark.slow
def test_what_diverges_on_one_process_diverges_on_all(tmp_path):
    done = launched("diverge_there", tmp_path)
    assert [process.stdout for process in done] == ["only here\n[2, 3, 4] 0\n"] * 2, done[0].stderr + done[1].stderr


def test_in_one_process_nothing_is_shared(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # a size without ranks is some cluster's, and no launch
    parallel.start("cpu")
    assert parallel.processes() == 1 and parallel.is_first() and not torch.distributed.is_initialized()
    assert parallel.share(sorted, [3, 1]) == [1, 3] and parallel.mine([3, 1]) == [3, 1]
    parameter = torch.nn.Parameter(torch.ones(2))
    assert parallel.sum_gradients([parameter], 2.5) == 2.5 and parameter.grad is None


def test_parts_are_every_nth_item(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(parallel.mine(range(7)))
    assert parts == [[0, 3, 6], [1, 4], [2, 5]]


def test_a_sweep_is_not_launched_several_times(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["sweep", "--profile", "smoke", "--out", str(tmp_path)]) == 2
    assert "accelerate launch is for one run" in capsys.readouterr().err
