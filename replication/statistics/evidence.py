"""What of the tables may count as evidence: checked, filtered, and laid out as seeds × items.

Evidence is a finished or diverged headline run (ablation full_vs_sparse) of the claim's own profile and model. A diverged run
stands at its last finite checkpoint. What is missing stays missing and is named; it never becomes a zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from replication.errors import UserError
from replication.names import ENDED, HEADLINE, SCHEMA_VERSION, TASKS

RUN_COLUMNS = ("run_id", "ablation", "profile", "task", "method", "seed", "status", "accuracy")
ITEM_COLUMNS = ("run_id", "item_id", "correct")
CURVE_COLUMNS = ("run_id", "step", "metric", "value")
Tables = Mapping[str, pd.DataFrame]

#: The paper's model itself: not its Instruct or quantised siblings, and not a small stand-in of a dry run.
PAPER_MODEL = "Qwen2-1.5B"
_TRUE = {"1", "1.0", "true"}
_FALSE = {"0", "0.0", "false"}


def table(tables: Tables, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """Table ``name`` with at least ``columns``; absent or without rows, it comes back empty.

    Raises UserError if it has rows and lacks a column (naming it) or carries another schema_version.
    """
    frame = tables.get(name)
    if frame is None or len(frame) == 0:
        return pd.DataFrame({column: pd.Series(dtype=object) for column in columns})
    for column in columns:
        if column not in frame.columns:
            raise UserError(f"{name}.csv has no column {column}: rebuild the tables with `make report`")
    if "schema_version" in frame.columns:
        for version in pd.unique(frame["schema_version"]):
            if str(version) not in (str(SCHEMA_VERSION), f"{SCHEMA_VERSION}.0"):
                raise UserError(f"{name}.csv has schema_version {version}, this code reads {SCHEMA_VERSION}: rebuild the tables")
    frame = frame.copy()
    frame["run_id"] = frame["run_id"].astype(str)
    return frame


def as_correct(values: pd.Series) -> pd.Series:
    """0/1 floats of a ``correct`` column, however the CSV spelled them; anything else raises UserError."""
    text = values.astype(str).str.strip().str.lower()
    bad = ~text.isin(_TRUE | _FALSE)
    if bad.any():
        raise UserError(f"items.csv has correct = {values[bad].iloc[0]!r}: it must be 0 or 1")
    return text.isin(_TRUE).astype(float)


def counts_for(scale: str, model: str) -> bool:
    """Whether runs of ``model`` (a config's: a Hub name, a folder, or nano) are evidence for the claims of a scale.

    For the paper's scale the last part of the name decides; a snapshot in the Hub's cache is named by its models--owner--name.
    """
    if scale == "nano":
        return model == "nano"
    parts = [part for part in re.split(r"[/\\]", model) if part]
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        parts = parts[-3].split("--")
    return bool(parts) and parts[-1].lower() == PAPER_MODEL.lower()


class Evidence:
    """The headline runs of one scale (``paper`` or ``nano``), by task and method."""

    def __init__(self, tables: Tables, scale: str) -> None:
        runs = table(tables, "runs", RUN_COLUMNS)
        keep = runs["profile"] == scale
        if "model" in runs:
            keep &= runs["model"].astype(str).map(lambda model: counts_for(scale, model)).astype(bool)
        #: The ablation that tunes, with what is pending or failed: for whether a headline run is at its tuned rate.
        self.rates = runs[keep & (runs["ablation"] == "learning_rate")].copy()
        runs = runs[keep & (runs["ablation"] == HEADLINE)].copy()
        self._planned = runs
        runs["accuracy"] = pd.to_numeric(runs["accuracy"], errors="coerce")
        runs = runs[runs["status"].isin(ENDED) & runs["accuracy"].notna()]
        runs = runs.sort_values(["task", "method", "seed", "run_id"], kind="stable")
        twice = runs.duplicated(["task", "method", "seed"])
        if twice.any():
            row = runs[twice].iloc[0]
            raise UserError(
                f"runs.csv has two {HEADLINE} runs of {row['method']} on {row['task']} with seed {row['seed']}: "
                "keep the one at the tuned settings"
            )
        self.runs = runs
        items = table(tables, "items", ITEM_COLUMNS)
        items = items[items["run_id"].isin(runs["run_id"])].copy()
        items["correct"] = as_correct(items["correct"])
        items["item_id"] = items["item_id"].astype(str)
        doubled = items.duplicated(["run_id", "item_id"])
        if doubled.any():
            row = items[doubled].iloc[0]
            raise UserError(f"items.csv has item {row['item_id']} of run {row['run_id']} twice: rebuild the tables")
        self._items = items
        self._check_accuracy()
        self._curves = table(tables, "curves", CURVE_COLUMNS)
        self._timings = table(tables, "timings", ("run_id",))

    def _check_accuracy(self) -> None:
        means = self._items.groupby("run_id")["correct"].mean()
        for run_id, accuracy in self.runs[["run_id", "accuracy"]].itertuples(index=False):
            # Tables keep six digits; a greater difference means that the files are of different runs.
            if run_id in means.index and abs(means[run_id] - accuracy) > 1e-4:
                raise UserError(
                    f"run {run_id} has accuracy {accuracy:g} in runs.csv and {means[run_id]:g} in items.csv: rebuild the tables"
                )

    def rows(self, task: str, method: str) -> pd.DataFrame:
        """Usable runs of a method on a task, by seed."""
        return self.runs[(self.runs["task"] == task) & (self.runs["method"] == method)]

    def matrix(self, task: str, method: str) -> pd.DataFrame:
        """Seeds × items of 0 and 1, over the items that every seed answered; empty if there are none."""
        seed_of = self.rows(task, method).set_index("run_id")["seed"]
        items = self._items[self._items["run_id"].isin(seed_of.index)]
        wide = items.assign(seed=items["run_id"].map(seed_of)).pivot(index="seed", columns="item_id", values="correct")
        return wide.dropna(axis="columns").sort_index().sort_index(axis="columns")

    def pair(self, task: str, a: str, b: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The matrices of two methods over the items they share."""
        left, right = self.matrix(task, a), self.matrix(task, b)
        shared = left.columns.intersection(right.columns)
        return left[shared], right[shared]

    def parsable(self, task: str, method: str) -> tuple[float, float] | None:
        """The shares of a method's test answers, all seeds together, that are parsable and that are right; None if not recorded.

        Parsable: ended by itself and holding a number.
        """
        items = self._items[self._items["run_id"].isin(self.rows(task, method)["run_id"])]
        if not len(items) or "parsed" not in items or items["parsed"].isna().any():
            return None
        parsable = (items["parsed"] == 1) & (items["truncated"] == 0)
        return float(parsable.mean()), float(items["correct"].mean())

    def per_seed(self, task: str, method: str, column: str) -> pd.Series:
        """One number of runs.csv per seed, without the seeds where it is empty; empty if there is no such column."""
        rows = self.rows(task, method)
        if column not in rows:
            return pd.Series(dtype=float)
        return pd.to_numeric(rows.set_index("seed")[column], errors="coerce").dropna()

    def steps(self, task: str, method: str, metric: str) -> np.ndarray:
        """All finite values of a metric of curves.csv in the runs of a method on a task."""
        wanted = self._curves["run_id"].isin(self.rows(task, method)["run_id"]) & (self._curves["metric"] == metric)
        values = pd.to_numeric(self._curves.loc[wanted, "value"], errors="coerce").to_numpy(dtype=float)
        return values[np.isfinite(values)]

    def peak_gpu_bytes(self, task: str, method: str) -> pd.Series:
        """The most GPU memory each run held, where timings.csv has it."""
        if "peak_gpu_bytes" not in self._timings:
            return pd.Series(dtype=float)
        wanted = self._timings["run_id"].isin(self.rows(task, method)["run_id"])
        values = pd.to_numeric(self._timings.loc[wanted, "peak_gpu_bytes"], errors="coerce")
        return values[values > 0]

    def diverged(self, tasks: Sequence[str], methods: Sequence[str]) -> int:
        """How many runs of these methods on these tasks diverged, with or without a checkpoint to stand at."""
        return int((self._planned_of(tasks, methods)["status"] == "diverged").sum())

    def lost(self, tasks: Sequence[str], methods: Sequence[str]) -> list[str]:
        """In words, the ended or failed runs without answers per item: leaving them out would flatter a method that breaks."""
        planned = self._planned_of(tasks, methods)
        ended = planned[planned["status"].isin(["done", "diverged", "failed"]) & ~planned["run_id"].isin(self._items["run_id"])]
        return [f"{row.method} seed {row.seed} on {row.task} ({row.status}) has no answers" for row in ended.itertuples()]

    def unfinished(self, tasks: Sequence[str], methods: Sequence[str]) -> int:
        """How many runs of these methods on these tasks are failed or pending."""
        return int(self._planned_of(tasks, methods)["status"].isin(["failed", "pending"]).sum())

    def _planned_of(self, tasks: Sequence[str], methods: Sequence[str]) -> pd.DataFrame:
        return self._planned[self._planned["task"].isin(tasks) & self._planned["method"].isin(methods)]


def rows_of(tables: Tables, ablation: str, profile: str) -> pd.DataFrame:
    """The ended runs of an ablation with an accuracy; diverged ones stand at their last finite checkpoint."""
    runs = tables.get("runs")
    if runs is None or not len(runs):
        return pd.DataFrame(columns=["run_id", "ablation", "task", "method", "seed", "status", "accuracy"])
    keep = (runs["ablation"] == ablation) & (runs["profile"] == profile) & runs["status"].isin(ENDED)
    found = runs[keep & runs["accuracy"].notna()]
    return found.sort_values("task", key=lambda tasks: tasks.map(TASKS.index), kind="stable")
