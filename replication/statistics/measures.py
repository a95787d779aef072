"""Each measure of data/claims.yaml, taken in one setting on one method: an estimate, whether the rule holds, and remarks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from replication.names import HEADLINE, METHOD_LABELS, NEW_SEED, SETTING_LABELS
from replication.statistics.accuracies import Tables, accuracy, ended, per_seed, table
from replication.statistics.claims import Claim
from replication.statistics.drift import at_equal_accuracy
from replication.statistics.intervals import Estimate, mean_over_seeds
from replication.statistics.paired import difference
from replication.statistics.rates import at_best_rate, tuning

#: A headline rate counts as tuned if no other has a validation accuracy higher by more: between rates this close chance chooses.
TUNED_WITHIN = 0.02
#: What tells the cells of the ablation regimes apart.
CELL = ("prompts_per_step", "group_size", "eps", "train_items")
#: An eps beyond any standard deviation of rewards: the advantage is centred, and as good as not normalised.
NORMALISED_UP_TO = 1.0


@dataclass(frozen=True)
class Case:
    """A claim in one setting (and on one sparse method, where it compares several); ``holds`` is None where it stays open."""

    label: str
    estimate: Estimate
    holds: bool | None
    remarks: tuple[str, ...] = ()


#: What was measured, and remarks on it; None where it was not.
Found = tuple[Estimate, tuple[str, ...]] | None


@dataclass(frozen=True)
class Evidence:
    """The planned runs that a claim may rest on, and the tables with their answers, curves and memory."""

    tables: Tables
    runs: pd.DataFrame

    def planned(self, settings: Sequence[str], methods: Sequence[str], ablation: str = HEADLINE) -> pd.DataFrame:
        """Planned runs of an ablation, ended or not."""
        runs = self.runs[self.runs["ablation"] == ablation]
        return runs[runs["setting"].isin(settings) & runs["method"].isin(methods)]

    def ended(self, setting: str, method: str, ablation: str = HEADLINE) -> pd.DataFrame:
        return ended(self.planned([setting], [method], ablation))


def all_of(answers: Iterable[bool | None]) -> bool | None:
    """Whether all hold; None, which is open, where none fails and one is open."""
    answers = list(answers)
    return False if False in answers else None if None in answers else True


def any_of(answers: Iterable[bool | None]) -> bool | None:
    """Whether one holds; None where none does and one is open."""
    answers = list(answers)
    return True if True in answers else None if None in answers else False


def measure(claim: Claim, evidence: Evidence, setting: str, method: str) -> list[Case]:
    """The claim's measure for a method in a setting, in the claim's unit; empty where it was not measured.

    One case, but of failing_cell one for each cell.
    """
    label = f"{METHOD_LABELS[method]} on {SETTING_LABELS[setting]}"
    if claim.measure == "failing_cell":
        return list(_failing_cells(claim, evidence, setting, method))
    own, other = (evidence.ended(setting, name, claim.ablation) for name in (method, claim.methods[-1]))
    found = {
        "accuracy": _accuracy,
        "accuracy_difference": _accuracy,
        "regularisation": _accuracy,
        "kept_fraction": _kept_fraction,
        "peak_gpu_memory": _peak_gpu_memory,
        "drift_at_equal_accuracy": _drift_at_equal_accuracy,
        "train_test_gap": _train_test_gap,
    }[claim.measure](claim, evidence, own, other)
    if found is None:
        return []
    estimate, remarks = found
    # A maximum has no interval.
    ends = (estimate.value, estimate.value) if claim.measure == "peak_gpu_memory" else (estimate.low, estimate.high)
    case: Case | None = Case(label, estimate, claim.holds(*ends), remarks)
    if claim.measure == "regularisation":
        case = _drift(case, own, other, f"{METHOD_LABELS[method]} minus {METHOD_LABELS[claim.methods[-1]]}")
    if case is not None and claim.tuned:
        untuned = tuple(remark for name in (method, claim.methods[-1]) for remark in _untuned(evidence, setting, name))
        # A better rate of a method only raises its gain over the base, so a case that says "no gain" fails all the more.
        decided = case.holds is False and claim.rule == "below" and claim.methods[-1] == "base"
        case = replace(case, holds=case.holds if decided or not untuned else None, remarks=case.remarks + untuned)
    return [] if case is None else [case]


def _accuracy(claim: Claim, evidence: Evidence, own: pd.DataFrame, other: pd.DataFrame) -> Found:
    """Test accuracy, or that of the runs ``own`` minus ``other``."""
    alone = claim.measure == "accuracy"
    estimate = accuracy(evidence.tables, own) if alone else difference(evidence.tables, own, other)
    if estimate is None:
        return None
    one_seed = estimate.seeds == 1 and not (own["method"] == "base").all()
    return estimate.scaled(100), ("one seed: the interval is over templates and items only",) if one_seed else ()


def _failing_cells(claim: Claim, evidence: Evidence, setting: str, method: str) -> Iterator[Case]:
    """For each cell of the ablation regimes that was run with new seeds: whether methods[0] fails there and ``method`` works.

    Gains over the base, each method at the rate with the best validation accuracy of those tried in the cell with these seeds.
    A case fails where one of the two is clearly otherwise. The estimate is that of ``method``. Each case says how many cells have
    new seeds.
    """
    full = claim.methods[0]
    runs = pd.concat([evidence.ended(setting, name, claim.ablation) for name in (full, method)])
    base = evidence.ended(setting, "base", claim.ablation)
    runs = runs[runs["seed"] >= NEW_SEED]
    cells = f"cells run with new seeds: {len(runs[list(CELL)].drop_duplicates())}"
    for cell, own in runs.groupby(list(CELL), dropna=False):
        best = {name: at_best_rate(mine) for name, mine in own.groupby("method")}
        gains = {name: difference(evidence.tables, mine, base) for name, mine in best.items()}
        if gains.get(full) is None or gains.get(method) is None:
            continue
        fails, works = gains[full].scaled(100), gains[method].scaled(100)
        margin = claim.fails_under or 0.0
        failed = True if fails.high < margin else False if fails.low >= margin else None
        holds = all_of([failed, claim.holds(works.low, works.high)])
        label = f"{METHOD_LABELS[method]} with {cell_name(*cell)}"
        gain = f"{METHOD_LABELS[full]} gains {fails.value:.1f} points [{fails.low:.1f}, {fails.high:.1f}]"
        yield Case(label, works, holds, (gain, cells))


def cell_name(prompts_per_step: float, group_size: float, eps: float, train_items: float) -> str:
    """A cell of the ablation regimes in words: prompts × completions, advantage, training items."""
    items = "all items" if pd.isna(train_items) else f"{train_items:.0f} items"
    return f"{prompts_per_step:.0f} × {group_size:.0f}, {'centred' if eps > NORMALISED_UP_TO else 'normalised'}, {items}"


def _drift_at_equal_accuracy(claim: Claim, evidence: Evidence, own: pd.DataFrame, other: pd.DataFrame) -> Found:
    """Mean over the seeds that both have of log KL(own) − log KL(other), each at the level that all runs reach."""
    if own.empty or other.empty:
        return None
    (setting,) = own["setting"].unique()
    runs = pd.concat([evidence.ended(setting, name) for name in claim.methods])
    found = at_equal_accuracy(evidence.tables, runs)
    logs = {name: np.log(mine.set_index("seed")["kl"]) for name, mine in found.groupby("method")}
    left, right = own["method"].iloc[0], other["method"].iloc[0]
    if not {left, right} <= set(logs):
        why = "no level above the start is reached by every run, or the curves lack the KL"
        return Estimate(np.nan, np.nan, np.nan, own["seed"].nunique(), 0), (why,)
    gap = mean_over_seeds((logs[left] - logs[right]).dropna())
    times, low, high = np.exp([gap.value, gap.low, gap.high])
    names = METHOD_LABELS[left], METHOD_LABELS[right]
    remark = f"at {100 * found['level'].iloc[0]:.0f} % on validation {names[0]} has {times:.2g} times the KL of {names[1]}"
    return gap, (remark + ("" if np.isnan(low) else f" [{low:.2g}, {high:.2g}]"),)


def _train_test_gap(claim: Claim, evidence: Evidence, own: pd.DataFrame, other: pd.DataFrame) -> Found:
    """Mean over the seeds that both have of the gap of accuracy on trained and test items, ``own`` minus ``other``, in points."""
    gaps = (_gap(claim.in_cell(own)) - _gap(claim.in_cell(other))).dropna()
    return (mean_over_seeds(gaps).scaled(100), ()) if len(gaps) else None


def _gap(runs: pd.DataFrame) -> pd.Series:
    """Per seed, the accuracy on trained items minus that on test items."""
    return per_seed(runs, "train_accuracy") - per_seed(runs, "accuracy")


def _kept_fraction(claim: Claim, evidence: Evidence, own: pd.DataFrame, other: pd.DataFrame) -> Found:
    values = per_seed(own, "kept_fraction")
    if values.empty:
        return None
    estimate, remarks = mean_over_seeds(values), ()
    if len(values) == 1:
        curves = table(evidence.tables, "curves")
        steps = curves.loc[curves["run_id"].isin(own["run_id"]) & (curves["metric"] == "kept_fraction"), "value"].dropna()
        if len(steps) > 1:
            low, high = np.quantile(steps, [0.025, 0.975])
            estimate, remarks = replace(estimate, low=low, high=high), ("one seed: the range is that of its steps",)
    low, high = (float(np.clip(end, 0, 1)) for end in (estimate.low, estimate.high))
    return replace(estimate, low=low, high=high).scaled(100), remarks


def _peak_gpu_memory(claim: Claim, evidence: Evidence, own: pd.DataFrame, other: pd.DataFrame) -> Found:
    """The most that any run held, in GB; a maximum has no interval."""
    timings = table(evidence.tables, "timings")
    peaks = timings.loc[timings["run_id"].isin(own["run_id"]), "peak_gpu_bytes"].dropna()
    if peaks.empty:
        return None
    return Estimate(float(peaks.max()) / 1e9, np.nan, np.nan, len(peaks), 0), ()


def _drift(case: Case, own: pd.DataFrame, full: pd.DataFrame, names: str) -> Case | None:
    """The case, which holds only with less KL to the base or a smaller gap of train and test accuracy; seeds in pairs."""
    smaller, words = [], []
    changes = {
        ("KL to base", ""): per_seed(own, "kl_to_base") - per_seed(full, "kl_to_base"),
        ("train-test gap", " points"): 100 * (_gap(own) - _gap(full)),
    }
    for (name, unit), by_seed in changes.items():
        change = mean_over_seeds(by_seed.dropna())
        if change.seeds == 0:
            continue
        smaller.append(True if change.high < 0 else False if change.low > 0 else None)
        interval = "" if np.isnan(change.low) else f" [{change.low:.2g}, {change.high:.2g}]"
        words.append(f"{name} of {names}: {change.value:+.2g}{interval}{unit}")
    if not words:
        return case if case.holds is False else None
    return replace(case, holds=all_of([case.holds, any_of(smaller)]), remarks=(*case.remarks, *words))


def _untuned(evidence: Evidence, setting: str, method: str) -> list[str]:
    """In words, why the headline runs of a method are not known to be at their tuned rate; empty where they are, or untrained."""
    if method == "base":
        return []
    name = f"{METHOD_LABELS[method]} on {SETTING_LABELS[setting]}"
    runs = evidence.runs
    tried = runs[(runs["ablation"] == "learning_rate") & (runs["setting"] == setting) & (runs["method"] == method)]
    points = tuning({"runs": tried})
    unfinished = int(tried["status"].isin(["failed", "pending"]).sum())
    judged = int(points["validation_accuracy"].notna().sum())
    if judged < 2 or unfinished:
        why = f"{unfinished} of its {len(tried)} runs unfinished" if unfinished else f"rates judged on validation: {judged}"
        return [f"{name} is not known to be at its tuned rate: run the ablation learning_rate ({why})"]
    used = evidence.ended(setting, method)["learning_rate"].unique()
    headline = " and ".join(f"{rate:g}" for rate in used)
    # Tables keep six digits.
    at = points[np.isclose(points["learning_rate"].to_numpy()[:, None], used, rtol=1e-4, atol=0).any(axis=1)]
    if len(at) != len(used) or not (at["validation_accuracy"] >= points["validation_accuracy"].max() - TUNED_WITHIN).all():
        prefers = points.loc[points["chosen"], "learning_rate"].iloc[0]
        why = f"headline {headline}, validation prefers {prefers:g}"
        return [f"{name} is not at its tuned rate: {why}: set it in the profile and run again"]
    if at["learning_rate"].isin([points["learning_rate"].min(), points["learning_rate"].max()]).any():
        return [f"{name} is at an end of the rates tried ({headline}), so a better one may lie beyond: try more"]
    return []
