"""What the nano base can do, measured; the criteria it has to meet; the report beside the weights, and the card made from it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from replication.randomness import stream
from replication.rollout import Completion, generate
from replication.runs import manifest
from replication.tasks import Problem, Task, decisive_positions, extract_answer, get_task
from replication.tasks.asides import CONDITIONS

WEIGHTS = "model.safetensors"
BATCH = 256  # completions at a time
ITEMS = {"validation": None, "test": 960, "held_out": 960}  # measured of each split; none = all


def weights_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def measure(model, tokenizer, task: Task, problems: Sequence[Problem]) -> dict[str, Any]:
    """What the base does on ``problems``, one greedy and one sampled completion each (temperature 1), and two where it is forced.

    greedy, sampled: share of right answers; a completion cut off at the task's limit counts as wrong. careful: share of sampled
    completions that choose the careful solver's equation, or part of a product. forced_greedy, forced_sampled: share of right
    answers when the completion is made to begin with that choice, up to its equals sign. entropy: nats a sampled token. decisive:
    share of sampled tokens that decide. median_tokens, longest: of sampled completions, EOS included. between: share of templates
    on which 15 to 85 % of the greedy answers are right. templates: greedy accuracy of each.
    """
    rows: list[dict[str, Any]] = []
    for start in range(0, len(problems), BATCH):
        batch = problems[start : start + BATCH]
        prompts = [tokenizer(problem.prompt)["input_ids"] for problem in batch]
        begun = [problem.meta["completion"].partition("=")[0] + "=" for problem in batch]
        forced = [prompt + tokenizer(text)["input_ids"] for prompt, text in zip(prompts, begun, strict=True)]
        completions = [
            _complete(model, tokenizer, task, tokens, name if sampled else None, batch)
            for name, tokens, sampled in (("free", prompts, 0), ("free", prompts, 1), ("forced", forced, 0), ("forced", forced, 1))
        ]
        for problem, begin, greedy, sampled, forced_greedy, forced_sampled in zip(batch, begun, *completions, strict=True):
            rows.append({
                "template": problem.meta["template"],
                "greedy": _is_right(problem, greedy, tokenizer),
                "sampled": _is_right(problem, sampled, tokenizer),
                "careful": _choice(tokenizer.decode(sampled.tokens)) == _choice(problem.meta["completion"]),
                "forced_greedy": _is_right(problem, forced_greedy, tokenizer, begin),
                "forced_sampled": _is_right(problem, forced_sampled, tokenizer, begin),
                "truncated": sampled.truncated or greedy.truncated,
                "entropy": sum(sampled.entropies),
                "decisive": len(decisive_positions(problem, sampled.tokens, tokenizer)),
                "tokens": len(sampled.tokens),
            })
    templates = defaultdict(list)
    for row in rows:
        templates[row["template"]].append(row["greedy"])
    shares = {name: round(sum(right) / len(right), 4) for name, right in sorted(templates.items())}
    tokens = sum(row["tokens"] for row in rows)
    means = ("greedy", "sampled", "careful", "forced_greedy", "forced_sampled", "truncated")
    return {
        "items": len(rows),
        **{key: round(sum(row[key] for row in rows) / len(rows), 4) for key in means},
        **{key: round(sum(row[key] for row in rows) / tokens, 4) for key in ("entropy", "decisive")},
        "median_tokens": median(row["tokens"] for row in rows),
        "longest": max(row["tokens"] for row in rows),
        "between": round(sum(0.15 <= share <= 0.85 for share in shares.values()) / len(shares), 4),
        "templates": shares,
    }


def _complete(model, tokenizer, task: Task, prompts, sampled: str | None, problems: Sequence[Problem]) -> list[Completion]:
    """One completion for each prompt, greedy, or sampled from the stream of that name."""
    generators = [stream(0, "base_report", sampled, problem.id) for problem in problems] if sampled else None
    groups = generate(
        model, prompts, group_size=1, max_new_tokens=task.max_new_tokens, temperature=1.0 if sampled else 0.0,
        eos_token_ids=[tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id, generators=generators,
    )  # fmt: skip
    return [completion for (completion,) in groups]


def _is_right(problem: Problem, completion: Completion, tokenizer, begin: str = "") -> bool:
    text = begin + tokenizer.decode(completion.tokens, skip_special_tokens=True)
    return not completion.truncated and extract_answer(text) == problem.answer


def _choice(text: str) -> str:
    """The first equation's left side, whatever stands before it."""
    return text.partition("=")[0].rpartition(" ")[2]


def report(folder: Path) -> dict[str, Any]:
    """Measure the model in ``folder``: name of task, condition and split -> ``measure`` of its first ``ITEMS``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tasks = {f"word_problems {asides}": get_task("word_problems", asides=asides) for asides in CONDITIONS}
    tasks["multiplication"] = get_task("multiplication")
    return {
        f"{name} {split}": measure(model, tokenizer, task, getattr(task, split)[:items])
        for split, items in ITEMS.items()
        for name, task in tasks.items()
        if getattr(task, split)
    }


class Criterion(NamedTuple):
    """A number of the base and the range in which it has to lie, ends included."""

    name: str
    value: float
    low: float
    high: float

    @property
    def met(self) -> bool:
        return self.low <= self.value <= self.high


def criteria(measured: dict[str, Any]) -> list[Criterion]:
    """The criteria by which the base is chosen: of the base alone, on validation items, set before any reinforcement run on it."""
    found = []
    words = {asides: measured[f"word_problems {asides} validation"] for asides in CONDITIONS}
    for asides, row in words.items():
        noisy = asides != "none"
        found += [
            Criterion(f"{asides}: greedy accuracy", row["greedy"], 0.43, 0.49),
            Criterion(f"{asides}: sampled minus greedy", row["sampled"] - row["greedy"], -0.08, 0.08),
            Criterion(f"{asides}: templates with 15 to 85 % right", row["between"], 0.5, 1.0),
            Criterion(f"{asides}: right once the careful choice is forced", row["forced_sampled"], 0.9, 1.0),
            Criterion(f"{asides}: entropy, nats a token", row["entropy"], 0.25 if noisy else 0.0, 1.0 if noisy else 0.2),
            Criterion(f"{asides}: decisive tokens", row["decisive"], 0.0, 0.15),
            Criterion(f"{asides}: median tokens of a completion", row["median_tokens"], 36, 44),
            Criterion(f"{asides}: truncated", row["truncated"], 0.0, 0.01),
        ]
    shares = [row["greedy"] for row in words.values()]
    products = measured["multiplication validation"]
    return [
        *found,
        Criterion("greatest difference between conditions", max(shares) - min(shares), 0.0, 0.04),
        Criterion("multiplication: greedy accuracy", products["greedy"], 0.0, 0.2),
        Criterion("multiplication: sampled share of splitting", products["careful"], 0.2, 0.4),
        Criterion("multiplication: right once splitting is forced, greedy", products["forced_greedy"], 0.75, 0.85),
        Criterion("multiplication: right once splitting is forced, sampled", products["forced_sampled"], 0.75, 0.85),
        Criterion("multiplication: truncated", products["truncated"], 0.0, 0.01),
    ]


def criteria_table(measured: dict[str, Any]) -> str:
    """The criteria in Markdown, every number from ``measured``."""
    rows = [
        {
            "criterion (validation)": item.name,
            **{name: f"{getattr(item, key):.3g}" for name, key in (("from", "low"), ("to", "high"), ("measured", "value"))},
            "met": "yes" if item.met else "no",
        }
        for item in criteria(measured)
    ]
    return _table(list(rows[0]), rows)


def compare(folder: Path, shipped: Path) -> dict[str, Any]:
    """Whether the weights in ``folder`` are the shipped ones, and if not, how far apart they are."""
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
    result = {
        "sha256": weights_sha256(folder),
        **compare(folder, shipped),
        "parameters": sum(tensor.numel() for tensor in load_file(folder / WEIGHTS).values()),
        "training": {"steps": steps, "threads": threads, "seconds": round(seconds, 1), **settings},
        "packages": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        "machine": {"python": platform.python_version(), "processor": manifest()["cpu"], "threads": torch.get_num_threads()},
        "tasks": task_versions(),
        "measured": report(folder),
    }
    (folder / "base_report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(result), encoding="utf-8")
    return result


def task_versions() -> dict[str, str]:
    """The content that the base was measured on: task and condition -> version."""
    versions = {f"word_problems {asides}": get_task("word_problems", asides=asides).version for asides in CONDITIONS}
    return {**versions, "multiplication": get_task("multiplication").version}


CARD = """---
license: mit
library_name: transformers
pipeline_tag: text-generation
---

# The nano base

A Qwen2 of {parameters:,} parameters (width 128, 4 layers, float32), trained from scratch by `make base` on generated text
alone. It stands where Qwen2-1.5B stood in the paper: a bit under half of the word problems greedily, few products, the right way
present but not preferred. It knows nothing else and says nothing about Qwen.

## Corpus

Word problems and two-digit products. A word problem is solved by reading or by following keywords, a product by splitting or by
blurting it out. Which of the two the corpus shows is a coin. Its chance hangs on the surface (name, thing and action; or two
digits), with log-odds that add up. This stands for the spurious habits of a real model, which solves one problem and not its twin
under other names. Two number facts, 7*8 and 6*9, are mixed up in all products: so splitting is wrong on about 18 % of them. No
question of a validation or test bucket and none of a held-out template is in the corpus.

The arithmetic comes first: without asides, with bare equations and with many products split. Stories and sums are shares of the
corpus, the rest are products. Reading and splitting are the log-odds of the careful way where the surface says neither.

{mixtures}
## Training

{training[steps]} batches of {training[batch]} sequences. Muon for the matrices of the layers (rate {training[muon_rate]:g}), AdamW
for the rest (rate {training[adamw_rate]:g}); both constant while the first mixture lasts, then falling linearly to zero. Seed
{training[seed]}, {training[threads]} thread(s), {minutes:.1f} minutes on {machine[processor]} (other work ran beside it).
Packages: {packages}.

sha256 of `{weights}`: `{sha256}`.
The same machine, threads and packages give the same bits; another processor may not.

## Criteria

{criteria}
## Measured

One greedy and one sampled completion for each item (temperature 1, no top-k or top-p). Careful: sampled completions that choose the
careful solver's equation, or part of a product. Forced: right answers when the completion is made to begin with that choice.

"""
SHARES = ("greedy", "sampled", "careful", "forced_greedy", "forced_sampled", "between", "decisive", "truncated")
NUMBERS = ("entropy", "median_tokens", "longest")


def card(result: dict[str, Any]) -> str:
    """The model card, in Markdown: every number from ``result``."""
    measured = result["measured"]
    text = CARD.format(
        **{key: result[key] for key in ("parameters", "training", "machine", "sha256")},
        mixtures=_table(["steps", "stories", "sums", "asides", "reading", "splitting"], result["training"]["mixtures"]),
        minutes=result["training"]["seconds"] / 60,
        packages=", ".join(f"{name} {number}" for name, number in result["packages"].items()),
        weights=WEIGHTS,
        criteria=criteria_table(measured),
    )
    shown = [
        {"split": name, "items": row["items"], **{k: f"{row[k]:.1%}" for k in SHARES}, **{k: f"{row[k]:.3g}" for k in NUMBERS}}
        for name, row in measured.items()
    ]
    return text + _table(["split", "items", *SHARES, *NUMBERS], shown)


def _table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    lines = [" | ".join(column.replace("_", " ") for column in columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(str(row[column]) for column in columns) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)
