"""What the nano base can do, measured: the report beside the weights, and the card made from it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from replication.nano import corpus
from replication.randomness import stream
from replication.rollout import generate
from replication.tasks import Problem, Task, extract_answer, get_task

SAMPLES = 2  # completions at temperature 1 for each item
WEIGHTS = "model.safetensors"


def weights_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def measure(model, tokenizer, task: Task, problems: Sequence[Problem], *, samples: int = SAMPLES) -> dict[str, Any]:
    """Greedy and sampled accuracy on ``problems``, in all and for each template, and how often a chosen way works.

    ``reliability`` is the share of right answers among the sampled completions that begin as the careful solver's do: the same
    operands and operator, or the first part of the split product. Reinforcement can only teach what is reliable once chosen.
    A completion cut off at the task's limit counts as wrong.
    """
    rows: list[dict[str, Any]] = []
    for start in range(0, len(problems), 100):
        batch = problems[start : start + 100]
        prompts = [tokenizer(problem.prompt)["input_ids"] for problem in batch]
        ends = {"eos_token_ids": [tokenizer.eos_token_id], "pad_token_id": tokenizer.pad_token_id}
        shared = {"max_new_tokens": task.max_new_tokens, **ends}
        greedy = generate(model, prompts, group_size=1, temperature=0.0, **shared)
        generators = [stream(0, "nano_report", task.name, problem.id) for problem in batch]
        sampled = generate(model, prompts, group_size=samples, temperature=1.0, generators=generators, **shared)
        for problem, first, group in zip(batch, greedy, sampled, strict=True):
            right = [_is_right(problem, completion, tokenizer) for completion in group]
            careful = [_is_careful(problem, tokenizer.decode(completion.tokens)) for completion in group]
            rows.append({
                "template": problem.meta.get("template", "all"),
                "greedy": _is_right(problem, first[0], tokenizer),
                "sampled": sum(right) / samples,
                "careful": sum(careful) / samples,
                "reliable": sum(r for r, c in zip(right, careful, strict=True) if c),
                "chosen": sum(careful),
                "mixed": 0 < sum(right) < samples,
                "tokens": sum(len(completion.tokens) for completion in group) / samples,
                "truncated": sum(completion.truncated for completion in group) / samples,
            })
    templates = defaultdict(list)
    for row in rows:
        templates[row["template"]].append(row)
    result = _summary(rows)
    if len(templates) > 1:
        result["templates"] = {name: _summary(templates[name]) for name in sorted(templates)}
    return result


def _is_right(problem: Problem, completion, tokenizer) -> bool:
    text = tokenizer.decode(completion.tokens, skip_special_tokens=True)
    return not completion.truncated and extract_answer(text) == problem.answer


def _is_careful(problem: Problem, text: str) -> bool:
    """Whether the completion takes the careful solver's way, whatever number comes out."""
    reference = problem.meta["completion"]
    return text.startswith(reference[: reference.index("=")])


def _summary(rows: list[dict[str, Any]]) -> dict[str, float | int | None]:
    def mean(key: str) -> float:
        return round(sum(row[key] for row in rows) / len(rows), 4)

    chosen = sum(row["chosen"] for row in rows)
    reliability = round(sum(row["reliable"] for row in rows) / chosen, 4) if chosen else None
    means = {key: mean(key) for key in ("greedy", "sampled", "careful", "mixed", "tokens", "truncated")}
    return {"items": len(rows), **means, "reliability": reliability}


def report(folder: Path, *, items: int | None = None) -> dict[str, Any]:
    """Measure the model in ``folder`` on validation, test and held-out items (the first ``items`` of each; default: all)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words, products = get_task("word_problems"), get_task("multiplication")
    splits = {
        "word_problems validation": (words, words.validation),
        "word_problems test": (words, words.test),
        "word_problems held_out": (words, words.held_out),
        "multiplication validation": (products, products.validation),
        "multiplication test": (products, products.test),
    }
    return {name: measure(model, tokenizer, task, split[:items]) for name, (task, split) in splits.items()}


def compare(folder: Path, shipped: Path) -> dict[str, Any]:
    """Whether the weights in ``folder`` are the shipped ones, and if not, how far apart they are."""
    from safetensors.torch import load_file

    mine = weights_sha256(folder)
    if not (shipped / WEIGHTS).is_file():
        return {"same_weights": None, "comparison": f"no shipped weights to compare with ({mine[:16]})"}
    if mine == weights_sha256(shipped):
        return {"same_weights": True, "comparison": f"the weights are the shipped ones ({mine[:16]})"}
    ours, theirs = load_file(folder / WEIGHTS), load_file(shipped / WEIGHTS)
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        return {"same_weights": False, "comparison": "the weights are not the shipped ones: other tensors or shapes"}
    largest = max((ours[name] - theirs[name]).abs().max().item() for name in ours)
    squares = sum(((ours[name] - theirs[name]).double() ** 2).sum().item() for name in ours)
    norm = sum((theirs[name].double() ** 2).sum().item() for name in theirs)
    return {
        "same_weights": False,
        "comparison": f"the weights are not the shipped ones: largest difference {largest:.3g}, relative distance "
        f"{(squares / norm) ** 0.5:.3g} (another processor sums floats in another order, and training amplifies it)",
    }


def write(folder: Path, *, steps: int, threads: int, seconds: float, shipped: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure, write ``base_report.json`` and the card ``README.md`` into ``folder``, return the report."""
    from safetensors.torch import load_file

    result = {
        "sha256": weights_sha256(folder),
        **compare(folder, shipped),
        "parameters": sum(tensor.numel() for tensor in load_file(folder / WEIGHTS).values()),
        "training": {"steps": steps, "threads": threads, "seconds": round(seconds, 1), **settings},
        "mixtures": {"early": asdict(corpus.EARLY), "late": asdict(corpus.LATE)},
        "packages": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        "machine": {"python": platform.python_version(), "processor": _processor(), "threads": torch.get_num_threads()},
        "tasks": {name: get_task(name).version for name in ("word_problems", "multiplication")},
        "measured": report(folder),
    }
    (folder / "base_report.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(result), encoding="utf-8")
    return result


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


CARD = """---
license: mit
library_name: transformers
pipeline_tag: text-generation
---

# The nano base

A Qwen2 of {parameters:,} parameters (width 128, 4 layers, float32), trained from scratch by `make base` on generated text
alone. It stands where Qwen2-1.5B stood in the paper: about 46 % of the word problems greedily, few products, the right way
present but not preferred. It knows nothing else and says nothing about Qwen.

## Corpus

Word problems ({late[words]:.0%}) and two-digit products. In the first {training[early_share]:.0%} of the steps
{early[shallow]:.0%} of the word problems are solved by keyword heuristics on the first two numbers and {early[blurted]:.0%}
of the products are blurted out, afterwards {late[shallow]:.0%} and {late[blurted]:.0%}; the others are solved by reading and by
splitting into parts. Of the blurted products {late[lucky]:.0%} are right, the rest forget the cross terms. No question of a
validation or test bucket and none of a held-out template is in it.

## Training

{training[steps]} batches of {training[batch]} sequences, AdamW, learning rate {training[learning_rate]:g} with linear decay,
seed {training[seed]}, {training[threads]} threads, {minutes:.1f} minutes on {machine[processor]} (other work ran beside it).
Packages: {packages}.

sha256 of `{weights}`: `{sha256}`.
The same machine, threads and packages give the same bits; another processor may not.

## Measured

Sampled: {samples} completions per item at temperature 1, no top-k or top-p. Careful way: completions that begin as the careful
solver's do; reliability: right answers among those. Mixed: items with both right and wrong samples.
"""
COLUMNS = ("items", "greedy", "sampled", "careful way", "reliability", "mixed", "tokens", "truncated")


def card(result: dict[str, Any]) -> str:
    """The model card, in Markdown: every number from ``result``."""
    text = CARD.format(
        **{key: result[key] for key in ("parameters", "training", "machine", "sha256")},
        **result["mixtures"],
        minutes=result["training"]["seconds"] / 60,
        packages=", ".join(f"{name} {number}" for name, number in result["packages"].items()),
        weights=WEIGHTS,
        samples=SAMPLES,
    )
    measured = result["measured"]
    text += "\n" + _table("split", measured)
    for split in ("word_problems validation", "word_problems held_out"):
        text += f"\n### {split}, by template\n\n" + _table("template", measured[split]["templates"])
    return text


def _table(first: str, rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| " + " | ".join((first, *COLUMNS)) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    return "\n".join(lines + [_row(name, values) for name, values in rows.items()]) + "\n"


def _row(name: str, values: dict[str, Any]) -> str:
    shares = [f"{values[key]:.1%}" for key in ("greedy", "sampled", "careful")]
    reliability = "" if values["reliability"] is None else f"{values['reliability']:.1%}"
    rest = [reliability, f"{values['mixed']:.1%}", f"{values['tokens']:.1f}", f"{values['truncated']:.1%}"]
    return f"| {name} | {values['items']} | {' | '.join(shares + rest)} |"
