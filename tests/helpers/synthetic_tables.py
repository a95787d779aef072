"""Tables as a replication would write them, from made-up numbers: for tests of statistics and figures, never a result."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

METHODS = ("base", "grpo", "s_grpo", "t_spmo")
ACCURACY = {
    "word_problems": {"base": 0.46, "grpo": 0.80, "s_grpo": 0.88, "t_spmo": 0.79},
    "multiplication": {"base": 0.09, "grpo": 0.62, "s_grpo": 0.58, "t_spmo": 0.66},
    "word_problems none": {"base": 0.48, "grpo": 0.93, "s_grpo": 0.92, "t_spmo": 0.92},
    "word_problems before": {"base": 0.45, "grpo": 0.90, "s_grpo": 0.78, "t_spmo": 0.52},
    "svamp": {"base": 0.46, "grpo": 0.47, "s_grpo": 0.72, "t_spmo": 0.73},
}
KEPT = {"base": np.nan, "grpo": 1.0, "s_grpo": 0.42, "t_spmo": 0.006}
KL = {"base": 0.0, "grpo": 0.30, "s_grpo": 0.20, "t_spmo": 0.10}
SELECTOR = {"base": "none", "grpo": "all", "s_grpo": "rule", "t_spmo": "trie"}
RATE = {"base": np.nan, "grpo": 1e-3, "s_grpo": 1e-3, "t_spmo": 2e-3}


def run_id(*parts: Any) -> str:
    """16 hex digits, as of a config."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def answers(rng: np.random.Generator, rate: float, difficulty: np.ndarray, seed_sd: float) -> np.ndarray:
    """One run's right and wrong answers, about ``rate`` of them right, the same items hard for every run."""
    rate = float(np.clip(rate + seed_sd * rng.normal(), 0, 1))
    score = difficulty + 0.6 * rng.normal(size=len(difficulty))
    right = np.zeros(len(difficulty), dtype=int)
    right[np.argsort(score)[: round(rate * len(difficulty))]] = 1
    return right


def headline(
    *,
    profile: str = "nano",
    model: str = "nano",
    tasks: Sequence[str] = ("word_problems", "multiplication"),
    asides: Sequence[str] = ("after",),
    accuracy: Mapping[str, Mapping[str, float]] = ACCURACY,
    seeds: int = 3,
    items: int = 300,
    base_items: int | None = None,
    seed_sd: float = 0.015,
    steps: int = 75,
) -> dict[str, pd.DataFrame]:
    """runs, items and curves of the ablation full_vs_sparse; word problems under each of the conditions ``asides``.

    ``base_items``: that many for the base, the first of which are those of the trained runs.
    """
    rng = np.random.default_rng(20)
    runs, item_rows, curves = [], [], []
    conditions = [(task, where) for task in tasks for where in (asides if task == "word_problems" else (None,))]
    for task, where in conditions:
        # The default condition goes by the name of the task.
        setting = task if where in ("after", None) else f"{task} {where}"
        difficulty = rng.normal(size=max(items, base_items or 0))
        for method in METHODS:
            for seed in range(1 if method == "base" else seeds):
                name, count = run_id(profile, setting, method, seed), base_items or items if method == "base" else items
                right = answers(rng, accuracy[setting][method], difficulty[:count], 0.0 if method == "base" else seed_sd)
                run = _run(name, "full_vs_sparse", profile, model, task, method, seed, right.mean(), rng, count)
                runs.append(run | {"asides": where})
                item_rows += [(name, "test", f"{task}-{i:04d}", int(r), 0) for i, r in enumerate(right)]
                if method != "base":
                    curves += _curves(name, task, method, accuracy[setting], steps, rng)
    return {
        "runs": _frame(runs),
        "items": _frame(pd.DataFrame(item_rows, columns=["run_id", "split", "item_id", "correct", "truncated"])).assign(
            template=np.nan, reward=np.nan, parsed=np.nan
        ),
        "curves": _frame(pd.DataFrame(curves, columns=["run_id", "step", "metric", "value"])),
    }


def regimes(
    tables: Mapping[str, pd.DataFrame], cells: Sequence[Mapping[str, float]], *, first_seed: int = 200, seeds: int = 5
) -> dict[str, pd.DataFrame]:
    """``tables`` with cells of the ablation regimes under ``after``.

    Args:
        cells: fields of the config, and by method the accuracy; ``gap`` by method is what trained items are ahead by.
    """
    rng = np.random.default_rng(22)
    base = tables["runs"].query("task == 'word_problems' and method == 'base'").assign(ablation="regimes")
    answered = tables["items"][tables["items"]["run_id"] == base["run_id"].iloc[0]]
    difficulty = -answered["correct"].to_numpy() + rng.normal(size=len(answered))
    runs, items = [base], []
    for number, cell in enumerate(cells):
        fields = {"prompts_per_step": 1, "group_size": 4, "eps": 1e-4, "train_items": np.nan, "steps": 150}
        fields |= {name: value for name, value in cell.items() if name in fields}
        for method in METHODS[1:]:
            for seed in range(first_seed, first_seed + seeds) if method in cell else ():
                right = answers(rng, cell[method], difficulty, 0.01)
                name = run_id("regimes", number, method, seed)
                row = _run(name, "regimes", "nano", "nano", "word_problems", method, seed, right.mean(), rng, len(right))
                row["train_accuracy"] = right.mean() + cell.get("gap", {}).get(method, 0.0) + 0.001 * rng.normal()
                runs.append(pd.DataFrame([row | fields | {"schema_version": 1}]))
                items.append(answered.assign(run_id=name, correct=right))
    return {**tables, "runs": pd.concat([tables["runs"], *runs], ignore_index=True), "ablation_items": pd.concat(items)}


def tuned(tables: Mapping[str, pd.DataFrame], factor: float = 1.0) -> dict[str, pd.DataFrame]:
    """``tables`` with the ablation learning_rate, which chooses ``factor`` times the rates of the headline runs."""
    runs = tables["runs"]
    first = runs[(runs["ablation"] == "full_vs_sparse") & (runs["method"] != "base") & (runs["seed"] == 0)]
    points = []
    for rate, accuracy in ((0.1, 0.3), (1.0, 0.5), (10.0, 0.4)):
        names = [run_id("tuned", name, rate) for name in first["run_id"]]
        values = {"run_id": names, "ablation": "learning_rate", "validation_accuracy": accuracy}
        points.append(first.assign(**values, learning_rate=first["learning_rate"] * factor * rate))
    return {**tables, "runs": pd.concat([runs, *points], ignore_index=True)}


def full(
    seeds: int = 5,
    selectors: Sequence[str] = ("random", "earliest", "latest", "entropy"),
    asides: Sequence[str] = ("none", "before", "after"),
) -> dict[str, pd.DataFrame]:
    """The headline in every setting and three ablations under ``after``; T-SPMO diverges at the highest learning rate."""
    tables = headline(seeds=seeds, asides=asides)
    rng = np.random.default_rng(21)
    rows = []
    base = ACCURACY["word_problems"]["base"]
    points = [("s_grpo", "rule", kept) for kept in (0.14, 0.23, 0.42, 0.65)] + [("grpo", "all", 1.0), ("t_spmo", "trie", 0.006)]
    points += [("s_grpo", selector, kept) for selector in selectors for kept in (0.05, 0.1, 0.2, 0.42, 0.7)]
    bonus = {"rule": 0.02, "earliest": 0.03, "latest": -0.12, "entropy": 0.01, "trie": 0.3}
    for method, selector, kept in points:
        for seed in range(seeds):
            value = base + 0.42 * (1 - np.exp(-8 * kept)) - 0.06 * kept + bonus.get(selector, 0.0) + 0.02 * rng.normal()
            name = run_id("fraction", method, selector, kept, seed)
            row = _run(name, "token_fraction", "nano", "nano", "word_problems", method, seed, value, rng, 300)
            row |= {"selector": selector, "keep_probability": kept if method == "s_grpo" else np.nan}
            rows.append(row | {"kept_fraction": kept * (1 + 0.02 * rng.normal()) if kept < 1 else 1.0})
    for seed in range(seeds):  # the contrast of denominators
        row = _run(run_id("denominator", seed), "token_fraction", "nano", "nano", "word_problems", "s_grpo", seed, 0.8, rng, 300)
        rows.append(row | {"denominator": "completion", "keep_probability": 0.42})
    for method in METHODS[1:]:
        for rank in (0, 1, 2, 4, 8, 16, 32):
            for seed in range(seeds):
                value = ACCURACY["word_problems"][method] - (0.12 / rank if rank else 0.02) + 0.02 * rng.normal()
                name = run_id("rank", method, rank, seed)
                row = _run(name, "lora_rank", "nano", "nano", "word_problems", method, seed, value, rng, 300)
                rows.append(row | {"lora_rank": rank, "lora_alpha": 2.0 * rank if rank else 16.0})
        for task in ("word_problems", "multiplication"):
            for rate in (3e-4, 1e-3, 2e-3, 4e-3, 1e-2):
                for seed in range(2):
                    distance = np.log(rate / RATE[method])
                    value = ACCURACY[task][method] - 0.06 * distance**2 + 0.02 * rng.normal()
                    name = run_id("rate", task, method, rate, seed)
                    row = _run(name, "learning_rate", "nano", "nano", task, method, seed, max(value, 0.0), rng, 300)
                    diverged = method == "t_spmo" and rate == 1e-2
                    rows.append(row | {"learning_rate": rate, "status": "diverged" if diverged else "done"})
    tables["runs"] = pd.concat([tables["runs"], _frame(rows)], ignore_index=True)
    return tables


def _run(
    name: str, ablation: str, profile: str, model: str, task: str, method: str, seed: int, value: float,
    rng: np.random.Generator, items: int,
) -> dict[str, Any]:  # fmt: skip
    generated = 0 if method == "base" else int(75 * 128 * 30 * (1 + 0.05 * rng.normal()))
    kept = KEPT[method] * (1 if method in ("base", "grpo") else 1 + 0.02 * rng.normal())
    return {
        "run_id": name, "ablation": ablation, "profile": profile, "task": task,
        "asides": "after" if task == "word_problems" else None, "method": method, "model": model,
        "selector": SELECTOR[method], "seed": seed, "learning_rate": RATE[method], "lora_rank": 8, "lora_alpha": 16.0,
        "denominator": "kept" if method == "s_grpo" else "completion", "command": f"replication run --seed {seed}",
        "status": "done", "reason": np.nan, "accuracy": value, "sampled_accuracy": value - 0.03,
        "validation_accuracy": value + 0.01 * rng.normal(), "held_out_accuracy": value - 0.05,
        "longer_numbers_accuracy": np.nan if task == "svamp" else value / 2,
        "train_accuracy": value + 0.02 + 0.05 * KL[method] + 0.002 * rng.normal(), "n_items": items,
        "steps_done": 0 if method == "base" else 75, "tokens_generated": generated,
        "tokens_in_loss": 0 if method == "base" else int(generated * kept * 0.7),
        "tokens_forwarded": 0 if method == "base" else int(generated * (0.3 + 0.7 * kept) * 0.4),
        "kept_fraction": kept, "kl_to_base": KL[method] * (1 + 0.05 * rng.normal()),
    }  # fmt: skip


def _curves(
    name: str, task: str, method: str, accuracy: Mapping[str, float], steps: int, rng: np.random.Generator
) -> list[tuple[str, int, str, float]]:
    rows: list[tuple[str, int, str, float]] = []
    start, end = accuracy["base"], accuracy[method]
    rows += [(name, 0, "validation_accuracy", start), (name, 0, "validation_kl_to_base", 0.0)]
    for step in range(1, steps + 1):
        level = end + (start - end) * np.exp(-step / 20)
        rows.append((name, step, "reward", float(np.clip(level + 0.05 * rng.normal(), 0, 1))))
        rows.append((name, step, "kept_fraction", KEPT[method] * (1 + 0.03 * rng.normal())))
        rows.append((name, step, "tokens_in_loss", 128 * 30 * 0.7 * KEPT[method]))
        rows.append((name, step, "tokens_forwarded", 1500 * (0.3 + 0.7 * KEPT[method])))
        rows.append((name, step, "tokens_generated", 128 * 30))
        if step % 25 == 0:
            rows.append((name, step, "validation_kl_to_base", KL[method] * (1 - np.exp(-step / 20)) * (1 + 0.05 * rng.normal())))
            rows.append((name, step, "validation_accuracy", float(np.clip(level + 0.02 * rng.normal(), 0, 1))))
    return rows


def _frame(rows: list[dict[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    frame.insert(0, "schema_version", 1)
    return frame
