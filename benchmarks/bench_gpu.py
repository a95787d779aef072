"""The shape of Qwen2-1.5B with random weights in bf16 on a GPU: seconds and peak memory of a step, for each way to score.

    python -m benchmarks.bench_gpu --out results/bench

Needs no TRL and no download. ``--shape tiny --device cpu`` goes through the same code in seconds and measures nothing of use.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import METHODS, SPARSE
from replication.algorithms import TokenCredit
from replication.models import resolve_device
from replication.objective import surrogate_loss
from replication.rollout import generate
from replication.scoring import gathered_log_softmax, prefix_states, score, token_log_probs, unwrapped

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2-1.5b": {
        "model": {"vocabulary": 151936, "width": 1536, "layers": 28, "heads": 12, "kv_heads": 2, "intermediate": 8960, "rank": 16},
        "prompt_length": 100,
        "completion_length": 300,
        "group_sizes": (8, 16),
    },
    "tiny": {
        "model": {"vocabulary": 64, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "rank": 4},
        "prompt_length": 6,
        "completion_length": 10,
        "group_sizes": (4,),
    },
}
#: plain: all logits at once; chunked: all tokens, the output layer in chunks; packed: this project's engine.
WAYS = ("plain", "chunked", "packed")
PROMPTS = 1


def chunked_log_probs(model: nn.Module, prompts: Sequence, completions: Sequence, credits: Sequence[TokenCredit]) -> Tensor:
    """What today's libraries do: every completion goes through the model with its prompt, the output layer runs in chunks."""
    states, _ = prefix_states(model, prompts, completions, credits, strategy="dense")
    targets = torch.tensor([
        group[row][place]
        for group, credit in zip(completions, credits, strict=True)
        for row, place in zip(credit.completion.tolist(), credit.position.tolist(), strict=True)
    ])  # fmt: skip
    return gathered_log_softmax(unwrapped(model), states, torch.arange(len(targets)), targets, 1.0)


def measure(shape: str, device: torch.device, dtype: torch.dtype, repetitions: int) -> list[dict[str, Any]]:
    """Rows of (group size, way, method): seconds and peak bytes of an update, and those of a rollout."""
    sizes = SHAPES[shape]
    policy = common.random_policy(**sizes["model"], dtype=dtype, device=str(device))
    rows = []
    for group_size in sizes["group_sizes"]:
        lengths = {"prompt_length": sizes["prompt_length"], "completion_length": sizes["completion_length"]}
        groups = common.synthetic_groups(vocabulary=sizes["model"]["vocabulary"], prompts=PROMPTS, group_size=group_size, **lengths)
        shared = {"shape": shape, "device": _name(device), "dtype": str(dtype).removeprefix("torch."), "group_size": group_size}
        shared |= {"prompts": PROMPTS, **lengths}
        roll = functools.partial(
            generate,
            policy.model,
            [group.prompt for group in groups],
            group_size=group_size,
            max_new_tokens=sizes["completion_length"],
            temperature=1.0,
            eos_token_ids=[],
            pad_token_id=0,
            generators=[torch.Generator().manual_seed(index) for index in range(PROMPTS)],
        )
        for compiled in (False, True):
            way = "compiled" if compiled else "shared rows"
            measured = _repeat(functools.partial(roll, compiled=compiled), device, repetitions)
            rows.append({**shared, "part": "rollout", "way": way, "method": "", **measured})
        for way in WAYS:
            for method in METHODS:
                measured = _update(policy, groups, way, method, device, repetitions)
                rows.append({**shared, "part": "update", "way": way, "method": method, **measured})
    return rows


def _update(policy, groups, way: str, method: str, device: torch.device, repetitions: int) -> dict[str, Any]:
    config = common.nano_config(method, **(SPARSE if method == "s_grpo" else {}))
    credits = common.credits_of(config, groups)
    arguments = [group.prompt for group in groups], [group.completions for group in groups], credits
    optimizer = torch.optim.AdamW(policy.trainable.values(), lr=config.learning_rate, weight_decay=0.0)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        if way == "chunked":
            log_probs = chunked_log_probs(policy.model, *arguments)
        else:
            log_probs = token_log_probs(policy.model, *arguments, strategy="dense" if way == "plain" else "packed")
        surrogate_loss(log_probs, credits)[0].backward()
        optimizer.step()

    measured = {"tokens_in_loss": sum(map(len, credits)), **_repeat(work, device, repetitions)}
    if measured["status"] != "done":
        return measured
    with torch.no_grad():
        strategy = "packed" if way == "packed" else "dense"
        return measured | {"tokens_forwarded": score(policy.model, *arguments, strategy=strategy).tokens_forwarded}


def _repeat(work, device: torch.device, repetitions: int) -> dict[str, Any]:
    """Median and quartiles of the seconds, and the peak memory above what was held; out of memory is a status, not a number."""
    on_gpu, taken = device.type == "cuda", []
    try:
        held = torch.cuda.memory_allocated() if on_gpu else 0
        work()
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        taken = [common.seconds(work) for _ in range(repetitions)]
    except torch.OutOfMemoryError:
        pass  # its traceback holds tensors until here
    if not taken:
        torch.cuda.empty_cache()
        return {"status": "out of memory"}
    low, middle, high = np.quantile(taken, [0.25, 0.5, 0.75])
    peak = torch.cuda.max_memory_allocated() - held if on_gpu else None
    return {"status": "done", "n": repetitions, "seconds": middle, "seconds_q1": low, "seconds_q3": high, "peak_bytes": peak}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/local/bench"), help="folder of gpu.csv (default: %(default)s)")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2-1.5b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args(arguments)
    device = resolve_device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    table = common.write_table(options.out, "gpu", measure(options.shape, device, dtype, options.repetitions))
    common.write_manifest(options.out, "gpu", device=_name(device))
    print(table.to_string(index=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
