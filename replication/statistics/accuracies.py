"""Test results: which runs count, their answers as seeds × items, and an accuracy with its interval.

A run that ended counts: done, diverged (as of its last validation) or collapsed. What is missing stays missing and is named;
it never becomes a zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from replication.errors import UserError
from replication.names import ENDED, HEADLINE, SCHEMA_VERSION, SETTING_LABELS, SETTINGS, TRAINED
from replication.randomness import numpy_stream
from replication.statistics.intervals import Estimate, bootstrap, design_effect, mean_over_items, mean_over_seeds, wilson
from replication.tables import columns_of, frame

Tables = Mapping[str, pd.DataFrame]

#: Columns without which nothing can be said, by table.
_NEEDED = {
    "runs": ("run_id", "ablation", "profile", "task", "method", "seed", "status", "accuracy"),
    **dict.fromkeys(("items", "ablation_items"), ("run_id", "item_id", "correct")),
    "curves": ("run_id", "step", "metric", "value"),
    "timings": ("run_id",),
}

#: The model of each scale itself: not its siblings, trained on or quantised, and not a small stand-in of a dry run.
SCALE_MODELS = {"paper": "Qwen2-1.5B", "small": "Qwen2.5-0.5B-Instruct", "nano": "nano"}
_ORDER = {name: place for place, name in enumerate((*SETTINGS, "base", *TRAINED))}
_BROKEN = ("diverged", "collapsed")
#: What stands for a number in a table that pandas or somebody wrote by hand.
_SPELLED = {"true": 1.0, "false": 0.0, "": np.nan}


def table(tables: Tables, name: str) -> pd.DataFrame:
    """Table ``name`` with every column of its schema, without rows where it is absent. Runs come with their ``setting``.

    A column that is missing comes back empty: older tables lack the newest fields of the config, and tables made by hand lack more.
    Texts come back as ``str`` and numbers as numbers, however the caller's frame holds them: ids made of digits, which pandas
    reads as numbers, join with ids that are texts.

    Raises UserError if a column of ``_NEEDED`` is missing, a number is none, or the table is of another schema version.
    """
    kinds, found = columns_of(name), tables.get(name)
    if found is None or found.empty:
        found = frame([], kinds, [])
    for column in _NEEDED.get(name, ()):
        if column not in found:
            raise UserError(f"{name}.csv has no column {column}: rebuild the tables with `make report`")
    if "schema_version" in found and (found["schema_version"].astype(float) != SCHEMA_VERSION).any():
        raise UserError(f"{name}.csv is not of schema_version {SCHEMA_VERSION}, which this code reads: rebuild the tables")
    columns = {column: _of_kind(found, column, kind, name) for column, kind in kinds.items()}
    found = found.assign(**columns)
    return with_setting(found) if name == "runs" else found


def _of_kind(found: pd.DataFrame, column: str, kind: str, name: str) -> Any:
    """A column as texts or numbers; the tables that ``read_tables`` gives have it so already."""
    if column not in found:
        return None if kind == "str" else np.nan
    values = found[column]
    if kind == "str":
        return values.astype("str")
    if kind == "bool" or (is_numeric_dtype(values) and not is_bool_dtype(values)):
        return values
    try:
        return pd.to_numeric(values.map(lambda value: _SPELLED.get(str(value).lower(), value))).astype(float)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}.csv has a {column} that is no number ({error}): rebuild the tables") from None


def with_setting(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that have a task, with the column ``setting``: the task, followed by a blank and ``asides`` where a row has them."""
    both = rows["task"].astype(str) + " " + rows["asides"].astype(str)
    return rows.assign(setting=rows["task"].where(rows["asides"].isna(), both))


def ended(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that have an end result, by setting, method and seed."""
    return in_order(runs[runs["status"].isin(ENDED) & runs["accuracy"].notna()], "setting", "method", "seed", "run_id")


def in_order(rows: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Rows sorted by columns and numbered anew; settings and methods in the order of ``names``, others after them by name."""

    def key(values: pd.Series) -> pd.Series:
        return values.map(lambda name: (_ORDER.get(name, len(_ORDER)), name)) if values.name in ("setting", "method") else values

    return rows.sort_values(list(columns), key=key, kind="stable", ignore_index=True)


def runs_of(tables: Tables, ablation: str, profile: str) -> pd.DataFrame:
    """The runs of an ablation under a profile that ended, in order."""
    runs = table(tables, "runs")
    return ended(runs[(runs["ablation"] == ablation) & (runs["profile"] == profile)])


def counts_for(scale: str, model: str) -> bool:
    """Whether runs of ``model`` (a config's: a Hub name, a folder, or nano) are evidence for the claims of a scale.

    The last part of the name decides; a snapshot in the Hub's cache is named by its models--owner--name. nano is a word of its own.
    """
    if scale == "nano":
        return model == "nano"
    parts = [part for part in re.split(r"[/\\]", model) if part]
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        parts = parts[-3].split("--")
    return bool(parts) and scale in SCALE_MODELS and parts[-1].lower() == SCALE_MODELS[scale].lower()


def judged_runs(tables: Tables, scale: str) -> pd.DataFrame:
    """The planned runs, ended or not, that a scale's claims may rest on: of its profile and its model."""
    runs = table(tables, "runs")
    # The claims are about right answers, not about a reward of the reader's own.
    keep = (runs["profile"] == scale) & runs["reward"].isna()
    keep &= runs["model"].map(lambda model: pd.isna(model) or counts_for(scale, model)).astype(bool)
    headline = runs[keep & (runs["ablation"] == HEADLINE)]
    twice = headline.duplicated(["setting", "method", "seed"])
    if twice.any():
        row = headline[twice].iloc[0]
        raise UserError(
            f"runs.csv has two {HEADLINE} runs of {row['method']} on {SETTING_LABELS[row['setting']]} with seed {row['seed']}: "
            "keep the one at the tuned settings"
        )
    return runs[keep].drop_duplicates(["ablation", "run_id"])


def answers(tables: Tables, runs: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Seeds × items of a split of the scores of some runs, one run for each seed, from items.csv and ablation_items.csv.

    A score is ``correct``, 0 or 1, or where that is empty a reward of the reader's own.

    Over the items that every seed answered, columns (template, item_id), template empty where it is not known. Empty where the
    answers are not in the tables.

    Raises UserError for an item that occurs twice, has no score or a ``correct`` that is not 0 or 1, and for answers that are not
    of these runs.
    """
    both = (table(tables, name) for name in ("items", "ablation_items"))
    items = pd.concat([rows[rows["run_id"].isin(runs["run_id"]) & (rows["split"].fillna("test") == split)] for rows in both])
    if not items["correct"].dropna().isin((0, 1)).all():
        raise UserError("items.csv has a `correct` that is not 0 or 1: rebuild the tables")
    items["score"] = items["correct"].fillna(items["reward"])
    items["template"] = items["template"].astype(object).fillna("")
    if items["score"].isna().any():
        raise UserError("items.csv has an item with neither correct nor reward: rebuild the tables")
    if (twice := items.duplicated(["run_id", "item_id"])).any():
        row = items[twice].iloc[0]
        raise UserError(f"items.csv has item {row['item_id']} of run {row['run_id']} twice: rebuild the tables")
    of_run = runs.set_index("run_id")
    gaps = (items.groupby("run_id")["score"].mean() - of_run["accuracy"]).abs()
    # Tables keep six digits; a greater difference means that the files are of different runs.
    if split == "test" and (gaps > 1e-4).any():
        run_id = gaps.idxmax()
        stated, counted = of_run.loc[run_id, "accuracy"], items.loc[items["run_id"] == run_id, "score"].mean()
        raise UserError(f"run {run_id} has accuracy {stated:g} in runs.csv and {counted:g} in items.csv: rebuild the tables")
    items["seed"] = items["run_id"].map(of_run["seed"])
    wide = items.pivot(index="seed", columns=["template", "item_id"], values="score")
    return wide.dropna(axis="columns").sort_index().sort_index(axis="columns")


def templates_of(matrix: pd.DataFrame) -> list[str]:
    """The template of each column of ``answers``."""
    return list(matrix.columns.get_level_values("template"))


def accuracy(
    tables: Tables, runs: pd.DataFrame, split: str = "test", *, shared_with: pd.DataFrame | None = None
) -> Estimate | None:
    """Accuracy of some runs, one for each seed, on a split: a fraction with its interval; None without runs.

    The bootstrap seed depends on the run ids, so the same runs always get the same interval. Where the answers of a run are not in
    the tables, the interval is the t interval over seeds.

    Args:
        shared_with: other runs, of any methods: only the items that every one of them answered too count; None if there are none.
    """
    if runs.empty:
        return None
    matrix, names = answers(tables, runs, split), sorted(runs["run_id"])
    if shared_with is not None:
        for _, others in shared_with.groupby("method"):
            matrix = matrix[matrix.columns.intersection(answers(tables, others, split).columns)]
        if matrix.size == 0:
            return None
        names = ["shared items", *names]
    elif matrix.size == 0 or len(matrix) < len(runs):
        over_seeds = mean_over_seeds(runs["accuracy" if split == "test" else f"{split}_accuracy"])
        low, high = (float(np.clip(end, 0, 1)) for end in (over_seeds.low, over_seeds.high))
        return replace(over_seeds, low=low, high=high)
    rng = numpy_stream(0, "bootstrap", "accuracy", *names)
    return bootstrap(matrix, None, rng, templates=templates_of(matrix))


def per_seed(runs: pd.DataFrame, column: str) -> pd.Series:
    """One number of runs.csv per seed, without the seeds where it is empty."""
    return runs.set_index("seed")[column].dropna()


def seed_spread(tables: Tables, profile: str = "nano") -> pd.DataFrame:
    """Per setting and method, two kinds of uncertainty side by side instead of one undefined "±".

    Columns setting, method, seeds, items, mean, seed_sd, seed_min, seed_max (how much training under another seed changes the
    accuracy; sd with ddof 1, NaN for one seed), items_low, items_high (what another test set could change for these very
    policies: the t interval over templates and items of the items' means over seeds; one seed without templates: Wilson's),
    design_effect, diverged, collapsed (numbers of runs). All else in fractions.
    """
    runs, rows = runs_of(tables, HEADLINE, profile), []
    for key, own in runs.groupby(["setting", "method"], sort=False):
        matrix = answers(tables, own)
        if matrix.size == 0:
            continue
        seeds, items = matrix.shape
        of_seed, of_item, templates = matrix.mean(axis=1), matrix.mean(axis=0).to_numpy(), templates_of(matrix)
        known = len(set(templates)) > 1
        low, high = wilson(round(of_item.sum()), items)
        if (seeds > 1 or known or not matrix.isin((0, 1)).all(axis=None)) and np.ptp(of_item) > 0:
            over_items = mean_over_items(of_item, templates)
            low, high = max(over_items.low, 0.0), min(over_items.high, 1.0)
        effect = design_effect(of_item, templates) if known else float("nan")
        spread = (of_seed.mean(), of_seed.std(ddof=1), of_seed.min(), of_seed.max())
        rows.append((*key, seeds, items, *spread, low, high, effect, *((own["status"] == status).sum() for status in _BROKEN)))
    columns = ["method", "seeds", "items", "mean", "seed_sd", "seed_min", "seed_max", "items_low", "items_high"]
    return pd.DataFrame(rows, columns=["setting", *columns, "design_effect", *_BROKEN])
