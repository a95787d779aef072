"""Each measure of data/claims.yaml, taken on one task and one method: an estimate, whether the claim's rule holds, and remarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from replication.names import HEADLINE, METHOD_LABELS, TASK_LABELS
from replication.statistics.accuracies import Tables, accuracy, ended, per_seed, table
from replication.statistics.claims import Claim
from replication.statistics.intervals import Estimate, mean_over_seeds
from replication.statistics.paired import difference
from replication.statistics.rates import tuning

#: A headline rate counts as tuned if no other has a validation accuracy higher by more: between rates this close chance chooses.
TUNED_WITHIN = 0.02


@dataclass(frozen=True)
class Case:
    """A claim on one task (and, for regularisation, one sparse method); ``holds`` is None where it stays open."""

    label: str
    estimate: Estimate
    holds: bool | None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """The planned runs that a claim may rest on, and the tables with their answers, curves and memory."""

    tables: Tables
    runs: pd.DataFrame

    def headline(self, tasks: Sequence[str], methods: Sequence[str]) -> pd.DataFrame:
        """Planned headline runs, ended or not."""
        runs = self.runs[self.runs["ablation"] == HEADLINE]
        return runs[runs["task"].isin(tasks) & runs["method"].isin(methods)]

    def ended(self, task: str, method: str) -> pd.DataFrame:
        return ended(self.headline([task], [method]))


def measure(claim: Claim, evidence: Evidence, task: str, method: str, seed: int) -> Case | None:
    """The claim's measure for a method on a task, in the claim's unit; None where it was not measured."""
    label = f"{METHOD_LABELS[method]} on {TASK_LABELS[task]}"
    own, other = evidence.ended(task, method), evidence.ended(task, claim.methods[-1])
    if claim.measure == "kept_fraction":
        return _kept_fraction(claim, evidence, own, label)
    if claim.measure == "peak_gpu_memory":
        return _peak_gpu_memory(claim, evidence, own, label)
    if claim.measure == "accuracy":
        estimate = accuracy(evidence.tables, own, seed=seed)
    else:
        estimate = difference(evidence.tables, own, other, seed=seed)
    if estimate is None:
        return None
    estimate = estimate.scaled(100)
    remarks = ("one seed: the interval is over items only",) if estimate.seeds == 1 and method != "base" else ()
    case = Case(label, estimate, claim.holds(estimate.low, estimate.high), remarks)
    if claim.measure == "regularisation":
        case = _drift(case, own, other, f"{METHOD_LABELS[method]} minus {METHOD_LABELS[claim.methods[-1]]} on {TASK_LABELS[task]}")
    if case is not None and claim.tuned:
        remarks = tuple(remark for name in (method, claim.methods[-1]) for remark in _untuned(evidence, task, name))
        case = replace(case, holds=None, remarks=case.remarks + remarks) if remarks else case
    return case


def _kept_fraction(claim: Claim, evidence: Evidence, own: pd.DataFrame, label: str) -> Case | None:
    values = per_seed(own, "kept_fraction")
    if values.empty:
        return None
    estimate, remarks = mean_over_seeds(values), ()
    if len(values) == 1:
        curves = table(evidence.tables, "curves", ("run_id", "step", "metric", "value"))
        steps = curves.loc[curves["run_id"].isin(own["run_id"]) & (curves["metric"] == "kept_fraction"), "value"].dropna()
        if len(steps) > 1:
            low, high = np.quantile(steps.astype(float), [0.025, 0.975])
            estimate, remarks = replace(estimate, low=low, high=high), ("one seed: the range is that of its steps",)
    low, high = (float(np.clip(end, 0, 1)) for end in (estimate.low, estimate.high))
    estimate = replace(estimate, low=low, high=high).scaled(100)
    return Case(label, estimate, claim.holds(estimate.low, estimate.high), remarks)


def _peak_gpu_memory(claim: Claim, evidence: Evidence, own: pd.DataFrame, label: str) -> Case | None:
    """The most that any run held, in GB; a maximum has no interval."""
    timings = table(evidence.tables, "timings", ("run_id", "peak_gpu_bytes"))
    peaks = timings.loc[timings["run_id"].isin(own["run_id"]), "peak_gpu_bytes"].dropna()
    if peaks.empty:
        return None
    peak, nan = float(peaks.max()) / 1e9, float("nan")
    return Case(label, Estimate(peak, nan, nan, len(peaks), 0), claim.holds(peak, peak))


def _drift(case: Case, own: pd.DataFrame, full: pd.DataFrame, names: str) -> Case | None:
    """The case, which holds only with less KL to the base or a smaller gap of train and test accuracy; seeds in pairs."""
    drifts_less: bool | None = False
    words = []
    for name, factor, unit in (("KL to base", 1.0, ""), ("train-test gap", 100.0, " points")):
        a, b = (
            per_seed(runs, "kl_to_base") if unit == "" else per_seed(runs, "train_accuracy") - per_seed(runs, "accuracy")
            for runs in (own, full)
        )
        change = mean_over_seeds((a - b).dropna()).scaled(factor)
        if change.seeds == 0:
            continue
        smaller = True if change.high < 0 else False if change.low > 0 else None
        drifts_less = True if drifts_less or smaller else None if drifts_less is None or smaller is None else False
        interval = "" if np.isnan(change.low) else f" [{change.low:.2g}, {change.high:.2g}]"
        words.append(f"{name} of {names}: {change.value:+.2g}{interval}{unit}")
    if not words:
        return case if case.holds is False else None
    holds = False if False in (case.holds, drifts_less) else None if None in (case.holds, drifts_less) else True
    return replace(case, holds=holds, remarks=(*case.remarks, *words))


def _untuned(evidence: Evidence, task: str, method: str) -> list[str]:
    """In words, why the headline runs of a method are not known to be at their tuned rate; empty where they are, or untrained."""
    if method == "base":
        return []
    name = f"{METHOD_LABELS[method]} on {TASK_LABELS[task]}"
    runs = evidence.runs
    tried = runs[(runs["ablation"] == "learning_rate") & (runs["task"] == task) & (runs["method"] == method)]
    points = tuning({"runs": tried})
    unfinished = int(tried["status"].isin(["failed", "pending"]).sum())
    judged = int(points["validation_accuracy"].notna().sum())
    if judged < 2 or unfinished:
        why = f"{unfinished} of its {len(tried)} runs unfinished" if unfinished else f"rates judged on validation: {judged}"
        return [f"{name} is not known to be at its tuned rate: run the ablation learning_rate ({why})"]
    used = evidence.ended(task, method)["learning_rate"].unique()
    headline = " and ".join(f"{rate:g}" for rate in used)
    # Tables keep six digits.
    at = points[np.isclose(points["learning_rate"].to_numpy()[:, None], used, rtol=1e-4, atol=0).any(axis=1)]
    if len(at) != len(used) or not (at["validation_accuracy"] >= points["validation_accuracy"].max() - TUNED_WITHIN).all():
        prefers = points.loc[points["chosen"].astype(bool), "learning_rate"].iloc[0]
        why = f"headline {headline}, validation prefers {prefers:g}"
        return [f"{name} is not at its tuned rate: {why}: set it in the profile and run again"]
    if at["learning_rate"].isin([points["learning_rate"].min(), points["learning_rate"].max()]).any():
        return [f"{name} is at an end of the rates tried ({headline}), so a better one may lie beyond: try more"]
    return []
