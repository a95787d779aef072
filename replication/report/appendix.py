"""What the report folds away at its end: checks of the numbers, the deviations ledger, settings, and where all of it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import yaml

from replication.config import ExperimentConfig
from replication.names import DEVIATIONS, HEADLINE, METHOD_LABELS
from replication.statistics import Tables, in_order, runs_of, table
from replication.tables import PROMPT_SHARES


def gain_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting and method: the gain in test accuracy over the base in points, split by what an answer has to achieve.

    Over the test items that the base and every run of the method answered.

    Accuracy is a · c, with a the share of parsable answers (ended by themselves, with a number) and c the accuracy among them.
    gain = (a − a₀)(c + c₀)/2 + (c − c₀)(a + a₀)/2: from producing a parsable answer, and from answering correctly. Where one of
    the two answers nothing parsable its c does not exist, and the whole gain is one of form. Empty without ``parsed`` in the
    items, and under a reward of one's own.
    """
    items = table(tables, "items")
    items = items[items["split"] == "test"].merge(runs_of(tables, HEADLINE, profile)[["run_id", "setting", "method"]], on="run_id")
    if items.empty or items[["parsed", "correct"]].isna().any(axis=None):
        return pd.DataFrame()
    parsable = (items["parsed"] == 1) & (items["truncated"] == 0)
    items, rows = items.assign(parsable=parsable), []
    base = {setting: own.set_index("item_id") for setting, own in items[items["method"] == "base"].groupby("setting")}
    for (setting, method), own in items[items["method"] != "base"].groupby(["setting", "method"]):
        if setting not in base:
            continue
        answered = own.groupby("item_id")["run_id"].nunique()
        both = base[setting].index.intersection(answered.index[answered == own["run_id"].nunique()])
        if both.empty:
            continue
        a0, right0 = base[setting].loc[both, ["parsable", "correct"]].mean()
        a, right = own.loc[own["item_id"].isin(both), ["parsable", "correct"]].mean()
        correctness = (right / a - right0 / a0) * (a + a0) / 2 if a and a0 else 0.0
        gain = right - right0
        row = {"setting": setting, "method": method, "seeds": own["run_id"].nunique(), "items": len(both)}
        row |= {"parsable_before": 100 * a0, "parsable_after": 100 * a, "gain": 100 * gain}
        rows.append(row | {"gain_of_form": 100 * (gain - correctness), "gain_of_correctness": 100 * correctness})
    return in_order(pd.DataFrame(rows), "setting", "method") if rows else pd.DataFrame()


def prompt_table(tables: Tables, profile: str) -> pd.DataFrame:
    """prompts.csv of a profile in percent: the base under each prompt template, with Wilson intervals."""
    found = table(tables, "prompts")
    found = found[found["profile"] == profile].reset_index(drop=True)
    shares = [f"{name}{end}" for name in PROMPT_SHARES for end in ("", "_low", "_high")]
    shown = found[["task", "template", "chosen", "items", *shares]].copy()
    shown[shares] *= 100
    notes = found["status"] + ": " + found["reason"].fillna("")
    return shown.assign(note=notes.where(found["status"] != "done"))


def troubled_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that ended otherwise than by doing all their steps well: diverged, collapsed or failed."""
    columns = ["ablation", "setting", "method", "seed", "learning_rate", "lora_rank", "status", "reason"]
    return runs.loc[~runs["status"].isin(["done", "pending"]), columns]


# Ledger, settings, provenance --------------------------------------------------------------------------------------------------


def ledger() -> dict[str, Any]:
    """data/deviations.yaml: lists of ``deviations`` and of what was ``not_run``; empty ones in an installed package."""
    return yaml.safe_load(DEVIATIONS.read_text("utf-8")) if DEVIATIONS.exists() else {"deviations": [], "not_run": []}


def deviation_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The ledger with the values that the headline runs had."""
    rows = []
    for entry in ledger()["deviations"]:
        values = "; ".join(f"{name}: {value_of(runs, name)}" for name in entry["fields"])
        row = {"id": f"{entry['id']} [{entry['mark']}]"} | {name: entry[name] for name in ("topic", "choice", "why", "effect")}
        rows.append(row | {"values_in_the_headline_runs": values})
    return pd.DataFrame(rows)


def setting_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Every field of the config with its source mark and the values of the headline runs."""
    rows = []
    for name, field in ExperimentConfig.model_fields.items():
        text = field.description or ""
        marks = ", ".join(re.findall(r"\[([PSR])\]", text))
        row = {"field": name, "source": marks, "values_in_the_headline_runs": value_of(runs, name)}
        rows.append(row | {"meaning": re.sub(r"\s*\[[PSR]\]", "", text)})
    return pd.DataFrame(rows)


def value_of(runs: pd.DataFrame, name: str) -> str:
    """The values of a setting in the trained headline runs: one if all agree, else by method."""
    if name not in runs or runs.empty:
        return "not run"
    own = runs[(runs["ablation"] == HEADLINE) & (runs["method"] != "base")]
    texts = own[name].map(lambda value: "unset" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else _listed(value))
    by_method = texts.groupby(own["method"], sort=False).agg(lambda values: " or ".join(sorted(set(values))))
    if by_method.nunique() == 1:
        return by_method.iloc[0]
    return ", ".join(f"{METHOD_LABELS[method]} {value}" for method, value in by_method.items())


def _listed(value: Any) -> str:
    text = str(value)
    return ", ".join(map(str, json.loads(text))) if text.startswith("[") else text


def provenance(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader asks of manifest.json first: commits, seeds, machine, time; what it does not hold is left out.

    Machine and software are those that trained. The manifest's own are of the process that wrote the tables.
    """
    seconds, memory = manifest.get("seconds_of_all_runs"), manifest.get("peak_rss_bytes")
    rows = [
        ("runs made from commit", ", ".join(manifest.get("run_commits") or [])),
        ("uncommitted changes", {True: "yes", False: "no"}.get(manifest.get("runs_dirty"), "")),
        ("seeds", ", ".join(map(str, manifest.get("seeds") or []))),
        ("processor", _of_the_runs(manifest, "cpu")),
        ("GPU", _of_the_runs(manifest, "gpu") or ("none" if manifest.get("runs") else "")),
        ("Python", _of_the_runs(manifest, "python")),
        ("packages", _of_the_runs(manifest, "packages")),
        ("time of all runs, one after the other", f"{seconds / 60:.1f} min" if seconds else ""),
        ("most memory that a process held", f"{memory / 1e9:.2f} GB" if memory else ""),
    ]
    return [(name, value) for name, value in rows if value]


def _of_the_runs(manifest: Mapping[str, Any], name: str) -> str:
    """What all runs have of ``name``, from where it stands once or from each run; "" where none has it."""
    values = [manifest.get(f"runs_{name}", run.get(name)) for run in manifest.get("runs", {}).values()]
    if any(value != values[0] for value in values):
        return "several, see manifest.json"
    found = values[0] if values else None
    return ", ".join(f"{key} {value}" for key, value in found.items()) if isinstance(found, dict) else found or ""
