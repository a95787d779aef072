"""A verdict for every claim: measure it on the tables, hold the interval against the rule, say what is missing.

The interval decides. The p-values beside it test "no difference at all" on the same resamples, Holm over every difference that
the claims of one scale judge, shown or not; the thresholds of data/claims.yaml are not what they test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd

from replication.statistics.claims import Claim, load_claims
from replication.statistics.estimates import accuracy, difference
from replication.statistics.evidence import Evidence, Tables
from replication.statistics.intervals import Estimate, holm, mean_over_seeds
from replication.statistics.rates import tuning

VERDICTS = ("supported", "not supported", "inconclusive", "not run", "by design")
#: A headline rate counts as tuned if no other has a validation accuracy higher by more: between rates this close chance chooses.
TUNED_WITHIN = 0.02
_NAMES = {"base": "base", "grpo": "GRPO", "s_grpo": "S-GRPO", "t_spmo": "T-SPMO"}


@dataclass(frozen=True)
class Case:
    """A claim on one task (and, for regularisation, one sparse method); ``holds`` is None where it stays open."""

    task: str
    label: str
    estimate: Estimate
    holds: bool | None
    remarks: tuple[str, ...] = field(default=())


def verdicts(claims: str | PathLike[str] | Mapping[str, Any] | Sequence[Any], tables: Tables, *, seed: int = 0) -> pd.DataFrame:
    """One row per claim, in the order of the claims.

    Args:
        claims: path of a claims file, its parsed content, or a list of ``Claim``.
        tables: frames by name: ``runs``, ``items``, ``curves`` and, optionally, ``timings``; absent or empty = nothing was run.
        seed: of the bootstrap; each claim draws from its own stream, so that adding one changes no other.

    Returns:
        Columns claim, paper_value, value, low, high, seeds, items, verdict; then text, scale, mark, counterpart, unit, rule,
        p, p_holm, diverged, note. Values are in ``unit``; what was not measured is NaN or NA, never 0.

    Raises:
        UserError: for unreadable claims, a missing column, another schema_version, or tables that contradict each other.
    """
    parsed = load_claims(claims)
    evidence = {scale: Evidence(tables, scale) for scale in ("paper", "nano")}
    found = [(claim, *_cases(claim, evidence[claim.scale], seed)) for claim in parsed]
    rows = []
    for claim, cases, missing in found:
        family = [case for other, its, _ in found if other.scale == claim.scale for case in its]
        adjusted = dict(zip(map(id, family), holm([case.estimate.p for case in family]), strict=True))
        rows.append(_row(claim, cases, missing, evidence[claim.scale], adjusted))
    return pd.DataFrame(rows, columns=list(_DTYPES)).astype(_DTYPES)


_DTYPES = {
    "claim": object, "paper_value": object, "value": float, "low": float, "high": float, "seeds": "Int64", "items": "Int64",
    "verdict": object, "text": object, "scale": object, "mark": object, "counterpart": object, "unit": object,
    "rule": object, "p": float, "p_holm": float, "diverged": "Int64", "note": object,
}  # fmt: skip


def _row(
    claim: Claim, cases: Sequence[Case], missing: Sequence[str], evidence: Evidence, adjusted: Mapping[int, float]
) -> dict[str, Any]:
    nan = float("nan")
    row: dict[str, Any] = {
        "claim": claim.id, "paper_value": claim.paper_exact if claim.paper_exact is not None else claim.paper_value,
        "value": nan, "low": nan, "high": nan, "seeds": pd.NA, "items": pd.NA, "verdict": "not run", "text": claim.text,
        "scale": claim.scale, "mark": claim.mark, "counterpart": claim.counterpart or "", "unit": claim.unit,
        "rule": claim.rule_text, "p": nan, "p_holm": nan, "diverged": pd.NA, "note": "",
    }  # fmt: skip
    if not cases:
        return row | {"note": "not measured: " + ", ".join(missing)}
    shown = min(cases, key=lambda case: _favour(claim, case))
    counts_answers = claim.measure not in ("kept_fraction", "peak_gpu_memory")
    lost = evidence.lost([case.task for case in cases], claim.methods) if counts_answers else []
    verdict, notes = _combine(claim, cases, lost)
    if len(cases) > 1:
        notes.append("shown: " + shown.label + "; all: " + ", ".join(_short(case) for case in cases))
    notes += dict.fromkeys(remark for case in cases for remark in case.remarks)
    if missing:
        notes.append("judged without what was not measured: " + ", ".join(missing))
    if unfinished := evidence.unfinished(claim.tasks, claim.methods):
        notes.append(f"{unfinished} planned runs unfinished")
    estimate = shown.estimate
    return row | {
        "value": estimate.value, "low": estimate.low, "high": estimate.high, "seeds": estimate.seeds,
        "items": estimate.items or pd.NA, "verdict": verdict, "p": estimate.p, "p_holm": adjusted[id(shown)],
        "diverged": evidence.diverged(claim.tasks, claim.methods), "note": "; ".join(notes),
    }  # fmt: skip


def _combine(claim: Claim, cases: Sequence[Case], lost: Sequence[str]) -> tuple[str, list[str]]:
    """The rule must hold in every case: one clear failure decides, one open case leaves it open."""
    if any(case.holds is False for case in cases):
        return "not supported", ["should hold by design and does not"] if claim.by_design else []
    if claim.by_design:
        return "by design", []
    if lost:
        return "inconclusive", list(lost)
    return ("supported" if all(case.holds for case in cases) else "inconclusive"), []


def _cases(claim: Claim, evidence: Evidence, seed: int) -> tuple[list[Case], list[str]]:
    """Cases that were measured, and in words those that were not."""
    cases, missing = [], []
    subjects = claim.methods[:-1] if claim.measure == "regularisation" else claim.methods[:1]
    if claim.measure == "peak_gpu_memory":
        subjects = claim.methods
    for task in claim.tasks:
        for method in subjects:
            label = f"{_NAMES[method]} on {_words(task)}"
            case = _measure(claim, evidence, task, method, label, seed)
            if case is None:
                missing.append(label)
                continue
            if claim.tuned and (remarks := _untuned(evidence, task, (method, claim.methods[-1]))):
                case = replace(case, holds=None, remarks=case.remarks + remarks)
            cases.append(case)
    return cases, missing


def _measure(claim: Claim, evidence: Evidence, task: str, method: str, label: str, seed: int) -> Case | None:
    if claim.measure == "kept_fraction":
        return _kept_fraction(claim, evidence, task, method, label)
    if claim.measure == "peak_gpu_memory":
        peaks = evidence.peak_gpu_bytes(task, method)
        if peaks.empty:
            return None
        peak, nan = float(peaks.max()) / 1e9, float("nan")
        return Case(task, label, Estimate(peak, nan, nan, len(peaks), 0), _holds(claim, peak, peak))
    if claim.measure == "accuracy":
        estimate = accuracy(evidence, task, method, seed)
        if estimate is None:
            return None
        estimate = estimate.scaled(100)
        remarks = ("one seed: the interval is over items only",) if estimate.seeds == 1 and method != "base" else ()
        return Case(task, label, estimate, _holds(claim, estimate.low, estimate.high), remarks)
    estimate = difference(evidence, task, method, claim.methods[-1], seed)
    if estimate is None:
        return None
    estimate = estimate.scaled(100)
    holds = _holds(claim, estimate.low, estimate.high)
    remarks = ("one seed: the interval is over items only",) if estimate.seeds == 1 else ()
    if claim.measure == "accuracy_difference":
        return Case(task, label, estimate, holds, remarks)
    drifts_less, words = _drift(evidence, task, method, claim.methods[-1])
    if not words and holds is not False:
        return None
    return Case(task, label, estimate, _and(holds, drifts_less), remarks + words)


def _untuned(evidence: Evidence, task: str, methods: Sequence[str]) -> tuple[str, ...]:
    """In words, why the headline runs of these methods are not known to be at their tuned rates; empty where all are."""
    remarks = []
    for method in (method for method in methods if method != "base"):
        name = f"{_NAMES[method]} on {_words(task)}"
        rates = evidence.rates[(evidence.rates["task"] == task) & (evidence.rates["method"] == method)]
        points = tuning({"runs": rates})
        chosen = points.loc[points["chosen"].astype(bool), "learning_rate"].tolist()
        unfinished = int(rates["status"].isin(["failed", "pending"]).sum())
        judged = int(points["validation_accuracy"].notna().sum())
        if judged < 2 or unfinished:
            why = f"{unfinished} of its {len(rates)} runs unfinished" if unfinished else f"rates judged on validation: {judged}"
            remarks.append(f"{name} is not known to be at its tuned rate: run the ablation learning_rate ({why})")
            continue
        used = pd.to_numeric(evidence.rows(task, method)["learning_rate"], errors="coerce").unique()
        headline = " and ".join(f"{rate:g}" for rate in used)
        # Tables keep six digits.
        at = points[np.isclose(points["learning_rate"].to_numpy()[:, None], used, rtol=1e-4, atol=0).any(axis=1)]
        best = float(points["validation_accuracy"].max())
        if len(at) != len(used) or not (at["validation_accuracy"] >= best - TUNED_WITHIN).all():
            prefers = f"headline {headline}, validation prefers {chosen[0]:g}"
            remarks.append(f"{name} is not at its tuned rate: {prefers}: set it in the profile and run again")
        elif at["learning_rate"].isin([points["learning_rate"].min(), points["learning_rate"].max()]).any():
            remarks.append(f"{name} is at an end of the rates tried ({headline}), so a better one may lie beyond: try more")
    return tuple(remarks)


def _kept_fraction(claim: Claim, evidence: Evidence, task: str, method: str, label: str) -> Case | None:
    per_seed = evidence.per_seed(task, method, "kept_fraction")
    if per_seed.empty:
        return None
    estimate, remarks = mean_over_seeds(per_seed), ()
    low, high = estimate.low, estimate.high
    steps = evidence.steps(task, method, "kept_fraction")
    if len(per_seed) == 1 and len(steps) > 1:
        low, high = (float(end) for end in np.quantile(steps, [0.025, 0.975]))
        remarks = ("one seed: the range is that of its steps",)
    estimate = Estimate(estimate.value, np.clip(low, 0, 1), np.clip(high, 0, 1), estimate.seeds, 0).scaled(100)
    return Case(task, label, estimate, _holds(claim, estimate.low, estimate.high), remarks)


def _drift(evidence: Evidence, task: str, sparse: str, full: str) -> tuple[bool | None, tuple[str, ...]]:
    """Whether ``sparse`` drifts less than ``full``: KL to base, or the gap of train and test accuracy; seeds in pairs."""
    answer: bool | None = False
    words = []
    measures = {"KL to base": (1.0, ""), "train-test gap": (100.0, " points")}
    for name, (factor, unit) in measures.items():
        values = []
        for method in (sparse, full):
            if name == "KL to base":
                values.append(evidence.per_seed(task, method, "kl_to_base"))
            else:
                train, test = (evidence.per_seed(task, method, c) for c in ("train_accuracy", "accuracy"))
                values.append((train - test).dropna())
        less = (values[0] - values[1]).dropna()
        if less.empty:
            continue
        change = mean_over_seeds(less).scaled(factor)
        smaller = True if change.high < 0 else False if change.low > 0 else None
        answer = _or(answer, smaller)
        interval = "" if np.isnan(change.low) else f" [{change.low:.2g}, {change.high:.2g}]"
        words.append(f"{name} of {_NAMES[sparse]} minus {_NAMES[full]} on {_words(task)}: {change.value:+.2g}{interval}{unit}")
    return answer if words else None, tuple(words)


def _holds(claim: Claim, low: float, high: float) -> bool | None:
    """The rule of the claim on an interval; None where the interval leaves it open or does not exist."""
    if np.isnan(low) or np.isnan(high):
        return None
    t = claim.threshold
    if claim.rule == "above":
        return True if low > t else False if high <= t else None
    if claim.rule == "below":
        return True if high < t else False if low >= t else None
    if claim.rule == "between":
        upper = claim.upper if claim.upper is not None else t
        return True if t <= low and high <= upper else False if high < t or low > upper else None
    if not low <= t <= high:
        return False
    return True if (high - low) / 2 <= (claim.resolution or 0) else None


def _favour(claim: Claim, case: Case) -> tuple[int, float]:
    """How much a case speaks for the claim; the least goes into the row."""
    low = case.estimate.value if np.isnan(case.estimate.low) else case.estimate.low
    high = case.estimate.value if np.isnan(case.estimate.high) else case.estimate.high
    # An interval that fails the rule is compared at its other end, the one nearer to the threshold. Otherwise a wide interval that
    # fails narrowly would be shown in place of a narrow one that fails clearly.
    if _holds(claim, case.estimate.low, case.estimate.high) is False:
        low, high = high, low
    margin = {
        "above": low - claim.threshold,
        "below": claim.threshold - high,
        "between": min(low - claim.threshold, (claim.upper or 0) - high),
        "agrees": -abs(case.estimate.value - claim.threshold),
    }[claim.rule]
    return {False: 0, None: 1, True: 2}[case.holds], float(margin)


def _short(case: Case) -> str:
    e = case.estimate
    interval = "" if np.isnan(e.low) else f" [{e.low:.1f}, {e.high:.1f}]"
    return f"{case.label} {e.value:.1f}{interval}"


def _words(task: str) -> str:
    return "SVAMP" if task == "svamp" else task.replace("_", " ")


def _and(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else None if a is None or b is None else True


def _or(a: bool | None, b: bool | None) -> bool | None:
    return True if a or b else None if a is None or b is None else False
