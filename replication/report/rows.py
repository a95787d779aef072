"""The tables of the report as texts, a dictionary for each row: verdicts, accuracies, tuning, deviations, provenance."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import yaml

from replication.config import ExperimentConfig
from replication.names import DEVIATIONS
from replication.names import METHOD_LABELS as METHODS
from replication.names import NEGATIVE_RESULTS as NEGATIVE
from replication.names import TASK_LABELS as TASKS
from replication.report import summaries
from replication.statistics import Tables, paired_tests, seed_spread


def verdict_rows(judged: pd.DataFrame) -> list[dict[str, str]]:
    """The verdicts as texts, each claim of the paper followed by its counterparts in the nano lab."""
    texts = [_verdict_row(row) for row in judged.to_dict("records")]
    counterparts = {row["claim"]: row["counterpart"] for row in texts}
    ordered = []
    for row in texts:
        if counterparts[row["claim"]] not in counterparts:
            ordered += [row, *(other for other in texts if other["counterpart"] == row["claim"])]
    return ordered


def _verdict_row(row: Mapping[str, Any]) -> dict[str, str]:
    unit = " %" if row["unit"] == "%" else f" {row['unit']}"
    ours = ""
    if pd.notna(row["value"]):
        digits = 2 if abs(row["value"]) < 5 else 1
        ours = f"{row['value']:.{digits}f}{unit}"
        if pd.notna(row["low"]):
            ours += f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
    paper = "" if pd.isna(row["paper_value"]) else str(row["paper_value"])
    if paper.endswith(".0"):
        paper = paper[:-2]
    if any(character.isdigit() for character in paper):
        paper += unit
    counts = {name: "" if pd.isna(row[name]) else str(int(row[name])) for name in ("seeds", "items")}
    plain = {name: "" if pd.isna(row[name]) else str(row[name]) for name in ("claim", "text", "mark", "rule", "note", "verdict")}
    counterpart = row.get("counterpart")
    plain["text"] = plain["text"].replace(" %", "\u00a0%")  # a line must not begin with the sign
    plain["p"] = ""
    if pd.notna(row["p_holm"]):
        plain["p"] = f"No difference at all, on the same resamples: p = {row['p']:.2g}, {row['p_holm']:.2g} after Holm"
    return {**plain, **counts, "paper": paper, "ours": ours, "counterpart": "" if pd.isna(counterpart) else str(counterpart)}


def summary(judged: pd.DataFrame, profile: str) -> list[str]:
    sentences = []
    for scale, name in (("nano", "In the nano lab"), ("paper", "At the paper's own scale")):
        counts = judged.loc[judged["scale"] == scale, "verdict"].value_counts()
        if set(counts.index) == {"not run"}:
            sentences.append(f"{name} nothing was judged: {counts.sum()} claims are not run.")
        elif len(counts):
            sentences.append(f"{name}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + ".")
    return sentences


def headline(tables: Tables, profile: str) -> list[dict[str, str]]:
    rows = []
    for row in summaries.headline_table(tables, profile).to_dict("records"):
        interval = f"{row['accuracy']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
        percents = ("sampled_accuracy", "accuracy_new_stories", "held_out_accuracy", "other_task_accuracy")
        rows.append(
            {
                "task": TASKS[row["task"]],
                "method": METHODS[row["method"]],
                "seeds": str(row["seeds"]),
                "items": str(row["items"]),
                "accuracy": interval,
                **{name: _number(row[name], 1) for name in percents},
                # SVAMP has no counterpart with longer numbers; the generated tasks have.
                "longer": _number(row["longer_numbers_accuracy"], 1) or ("" if row["task"] == "svamp" else "not measured"),
                "kept": "" if pd.isna(row["kept_fraction"]) else f"{row['kept_fraction']:.3g}",
                "kl": "" if row["method"] == "base" else _number(row["kl_to_base"], 3),
                "diverged": str(row["diverged"]),
            }  # fmt: skip
        )
    return rows


def gains(tables: Tables, profile: str) -> list[dict[str, str]]:
    names = ("parsable_before", "parsable_after", "gain", "gain_of_form", "gain_of_correctness")
    return [
        {"task": TASKS[row["task"]], "method": METHODS[row["method"]], **{name: _number(row[name], 1) for name in names}}
        for row in summaries.gain_table(tables, profile).to_dict("records")
    ]


def spread(tables: Tables, profile: str) -> list[dict[str, str]]:
    rows = []
    for row in sorted(seed_spread(tables, profile).to_dict("records"), key=lambda row: list(TASKS).index(row["task"])):
        several = row["seeds"] > 1
        rows.append(
            {
                "task": TASKS[row["task"]],
                "method": METHODS[row["method"]],
                "mean": _number(100 * row["mean"], 1),
                "sd": _number(100 * row["seed_sd"], 1) if several else "",
                "seeds": f"{100 * row['seed_min']:.1f} to {100 * row['seed_max']:.1f}" if several else "",
                "over_items": f"{100 * row['items_low']:.1f} to {100 * row['items_high']:.1f}",
            }  # fmt: skip
        )
    return rows


def paired(tables: Tables, profile: str) -> list[dict[str, str]]:
    """Exact McNemar tests of the trained methods, a row per task, pair and seed."""
    rows = []
    for row in paired_tests(tables, profile).to_dict("records"):
        if row["a"] == "base":
            continue
        names = {"task": TASKS[row["task"]], "pair": f"{METHODS[row['a']]}, {METHODS[row['b']]}"}
        counts = {name: str(row[name]) for name in ("seed", "items", "only_a", "only_b")}
        rows.append(names | counts | {name: f"{row[name]:.2g}" for name in ("p", "p_holm")})
    return rows


def negative_results(judged: pd.DataFrame) -> list[dict[str, str]]:
    """The dated log of what did not come out as thought, each entry with the verdicts that its claims have now."""
    now = {row["claim"]: row for row in verdict_rows(judged)}
    rows = []
    for entry in yaml.safe_load(NEGATIVE.read_text("utf-8"))["results"]:
        verdicts_now = [f"{name} {now[name]['verdict']}, {now[name]['ours'] or 'no value'}" for name in entry["claims"]]
        rows.append({**entry, "date": str(entry["date"]), "now": "; ".join(verdicts_now)})
    return rows


def tuning(tables: Tables, profile: str) -> dict[str, Any]:
    """A row per task and method, a column per rate, each cell with validation and test accuracy."""
    table = summaries.tuning_table(tables, profile)
    rates = sorted(table["learning_rate"].unique())
    rows = []
    for (task, method), own in table.groupby(["task", "method"], sort=False):
        cells = []
        for rate in rates:
            point = own[own["learning_rate"] == rate]
            cell = {"text": "", "chosen": False, "used": False}
            if len(point):
                first = point.iloc[0]
                text = f"{first['validation_accuracy']:.1f} / {first['accuracy']:.1f}"
                text += f" ({int(first['diverged'])} diverged)" if first["diverged"] else ""
                cell = {"text": text, "chosen": bool(first["chosen"]), "used": bool(first["used"])}
            cells.append(cell)
        rows.append({"task": TASKS[task], "method": METHODS[method], "seeds": str(own["seeds"].max()), "cells": cells})
    differs = [row for row in rows if not any(cell["chosen"] and cell["used"] for cell in row["cells"])]
    names = ", ".join(f"{row['method']} on {row['task']}" for row in differs)
    return {"rates": [f"{rate:g}" for rate in rates], "rows": rows, "differs": names}


def troubled(runs: pd.DataFrame) -> list[dict[str, str]]:
    if not len(runs):
        return []
    bad = runs[runs["status"].isin(["diverged", "failed", "pending"])]
    columns = ["ablation", "task", "method", "seed", "learning_rate", "lora_rank", "status", "reason"]
    return [{name: _plain(row.get(name)) for name in columns} for row in bad.to_dict("records")]


def ledger() -> dict[str, Any]:
    return yaml.safe_load(DEVIATIONS.read_text("utf-8"))


def deviations(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The ledger with the values that the headline runs had."""
    headline = runs[runs["ablation"] == "full_vs_sparse"] if len(runs) else runs
    return [
        {**entry, "values": "; ".join(_value_of(headline, name) for name in entry["fields"])} for entry in ledger()["deviations"]
    ]


def settings(runs: pd.DataFrame) -> list[dict[str, str]]:
    """Every field of the config with its source mark and the values of the headline runs."""
    headline = runs[runs["ablation"] == "full_vs_sparse"] if len(runs) else runs
    rows = []
    for name, field in ExperimentConfig.model_fields.items():
        text = field.description or ""
        marks = re.findall(r"\[([PSR])\]", text)
        value = _value_of(headline, name).removeprefix(f"{name} = ").removeprefix(f"{name}: ")
        rows.append({"name": name, "mark": ", ".join(marks), "text": re.sub(r"\s*\[[PSR]\]", "", text), "value": value})
    return rows


def _value_of(runs: pd.DataFrame, name: str) -> str:
    if name not in runs:
        return f"{name}: not run"
    own = runs[(runs["method"] != "base")]
    by_method = {
        METHODS[method]: sorted({_plain(value) or "unset" for value in group}) for method, group in own.groupby("method")[name]
    }
    values = {", ".join(value) for value in by_method.values()}
    if len(values) == 1:
        return f"{name} = {values.pop()}"
    return f"{name}: " + ", ".join(f"{method} {' or '.join(value)}" for method, value in by_method.items())


def provenance(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("runs made from commit", ", ".join(manifest.get("run_commits") or [])),
        ("uncommitted changes", {True: "yes", False: "no"}.get(manifest.get("runs_dirty"), "")),
        ("seeds", ", ".join(map(str, manifest.get("seeds") or []))),
        ("processor", f"{manifest.get('cpu') or ''}, {manifest.get('cores') or '?'} cores"),
        ("GPU", manifest.get("gpu") or "none"),
        ("system", manifest.get("platform") or ""),
        ("Python", manifest.get("python") or ""),
    ]
    if manifest.get("seconds_of_all_runs"):
        rows.append(("time of all runs, one after the other", f"{manifest['seconds_of_all_runs'] / 60:.1f} min"))
    if manifest.get("peak_rss_bytes"):
        rows.append(("most memory of one run", f"{manifest['peak_rss_bytes'] / 1e9:.2f} GB"))
    return [(name, value) for name, value in rows if value]


def example(runs: pd.DataFrame) -> str:
    done = runs[(runs["status"] == "done") & (runs["method"] == "s_grpo")] if len(runs) else runs
    return str(done.iloc[0]["command"]) if len(done) else ""


def _number(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _plain(value: Any) -> str:
    if value is None or (not isinstance(value, Sequence) and pd.isna(value)):
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and value.startswith("["):
        return ", ".join(map(str, json.loads(value)))
    return str(value)
