"""A verdict for every claim: measure it on the tables, hold the interval against the rule, say what is missing.

The interval decides. The p-values beside it test "no difference at all" on the same resamples, Holm over every difference that
the claims of one scale judge, shown or not; the thresholds of data/claims.yaml are not what they test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd

from replication.names import ENDED, METHOD_LABELS, NEW_SEED, SETTING_LABELS
from replication.statistics.accuracies import SCALE_MODELS, Tables, judged_runs, table
from replication.statistics.claims import Claim, load_claims
from replication.statistics.intervals import P_FLOOR, holm
from replication.statistics.measures import Case, Evidence, all_of, any_of, measure

VERDICTS = ("supported", "not supported", "inconclusive", "not run", "by design")
_DTYPES = {
    "claim": object, "paper_value": object, "value": float, "low": float, "high": float, "seeds": "Int64", "items": "Int64",
    "verdict": object, "text": object, "scale": object, "mark": object, "counterpart": object, "unit": object, "rule": object,
    "p": float, "p_holm": float, "p_at_floor": bool, "note": object,
}  # fmt: skip


def verdicts(claims: str | PathLike[str] | Mapping[str, Any] | Sequence[Any], tables: Tables) -> pd.DataFrame:
    """One row per claim, in the order of the claims.

    Args:
        claims: path of a claims file, its parsed content, or a list of ``Claim``.
        tables: frames by name: ``runs``, ``items``, ``curves`` and, optionally, ``timings``; absent or empty = nothing was run.

    Returns:
        Columns claim, paper_value, value, low, high, seeds, items, verdict; then text, scale, mark, counterpart, unit, rule,
        p, p_holm, p_at_floor (no resample was on the other side, so p is an upper bound), note. Values are in ``unit``; what was
        not measured is NaN or NA, never 0.

    Raises:
        UserError: for a missing column, a number that is none, tables that contradict each other, and claims that cannot be read.
    """
    parsed = load_claims(claims)
    runs = {scale: judged_runs(tables, scale) for scale in SCALE_MODELS}
    found = []
    for claim in parsed:
        evidence = Evidence(tables, claim.of_condition(runs[claim.scale]))
        cases: list[Case] = []
        missing: list[str] = []
        for setting in claim.settings_in(evidence.runs):
            for method in claim.subjects:
                measured = measure(claim, evidence, setting, method)
                cases += measured
                if not measured:
                    missing.append(f"{METHOD_LABELS[method]} on {SETTING_LABELS[setting]}")
        found.append((claim, evidence, cases, missing))
    adjusted: dict[int, float] = {}
    for scale in SCALE_MODELS:
        family = [case for claim, _, cases, _ in found if claim.scale == scale for case in cases]
        adjusted |= zip(map(id, family), holm([case.estimate.p for case in family]), strict=True)
    return pd.DataFrame([_row(*of_claim, adjusted) for of_claim in found], columns=list(_DTYPES)).astype(_DTYPES)


def _row(
    claim: Claim, evidence: Evidence, cases: Sequence[Case], missing: Sequence[str], adjusted: Mapping[int, float]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "claim": claim.id, "paper_value": claim.paper_value,
        "verdict": "not run", "text": claim.text, "scale": claim.scale, "mark": claim.mark, "counterpart": claim.counterpart or "",
        "unit": claim.unit, "rule": claim.rule_text, "p_at_floor": False,
    }  # fmt: skip
    if not cases:
        return row | {"note": "Not measured: " + ", ".join(missing)}
    # Of cells one is enough for the claim: the row shows what speaks most for it, otherwise what speaks most against it.
    shown = (max if claim.measure == "failing_cell" else min)(cases, key=lambda case: _favour(claim, case))
    planned = _planned(claim, evidence)
    verdict, notes = _combine(claim, cases, _lost(claim, evidence, planned))
    if len(cases) > 1:
        side = "for" if claim.measure == "failing_cell" else "against"
        notes.append(f"the row shows {shown.label}, the case most {side} the claim")
        notes.append("all cases: " + ", ".join(map(_short, cases)))
    notes += dict.fromkeys(remark for case in cases for remark in case.remarks)
    if missing:
        notes.append("judged without what was not measured: " + ", ".join(missing))
    if unfinished := int(planned["status"].isin(["failed", "pending"]).sum()):
        notes.append(f"planned runs that did not finish: {unfinished}")
    estimate = shown.estimate
    return row | {
        "value": estimate.value, "low": estimate.low, "high": estimate.high, "seeds": estimate.seeds,
        "items": estimate.items or pd.NA, "verdict": verdict, "p": estimate.p, "p_holm": adjusted[id(shown)],
        "p_at_floor": bool(estimate.p <= P_FLOOR), "note": ". ".join(note[0].upper() + note[1:] for note in notes),
    }  # fmt: skip


def _planned(claim: Claim, evidence: Evidence) -> pd.DataFrame:
    """The planned runs that the claim is about, ended or not."""
    runs = evidence.planned(claim.settings_in(evidence.runs), claim.methods, claim.ablation)
    if claim.measure == "failing_cell":
        return runs[runs["seed"] >= NEW_SEED]
    return claim.in_cell(runs)


def _lost(claim: Claim, evidence: Evidence, planned: pd.DataFrame) -> list[str]:
    """In words, the ended or failed runs without what is measured: leaving them out would flatter a method that breaks."""
    if claim.measure in ("kept_fraction", "peak_gpu_memory"):
        return []
    lost = planned[planned["status"] == "failed"]
    if claim.measure not in ("drift_at_equal_accuracy", "train_test_gap"):
        answered = pd.concat([table(evidence.tables, name)["run_id"] for name in ("items", "ablation_items")])
        lost = planned[planned["status"].isin([*ENDED, "failed"]) & ~planned["run_id"].isin(answered)]
    return [
        f"{METHOD_LABELS[row.method]} seed {row.seed} on {SETTING_LABELS[row.setting]} ({row.status}) has no answers"
        for row in lost.itertuples()
    ]


def _combine(claim: Claim, cases: Sequence[Case], lost: Sequence[str]) -> tuple[str, list[str]]:
    """The rule must hold in every case: one clear failure decides, one open case leaves it open. Of cells one is enough."""
    if claim.measure == "failing_cell":
        holds = any_of(case.holds for case in cases)
    else:
        holds = all_of(case.holds for case in cases)
        if holds is False:
            return "not supported", ["the lab was built so that this holds, and it does not"] if claim.by_design else []
        if claim.by_design:
            return "by design", []
    if lost:
        return "inconclusive", list(lost)
    return {True: "supported", None: "inconclusive", False: "not supported"}[holds], []


def _favour(claim: Claim, case: Case) -> tuple[int, float]:
    """How much a case speaks for the claim; the least goes into the row."""
    low, high = (case.estimate.value if np.isnan(end) else end for end in (case.estimate.low, case.estimate.high))
    if claim.holds(low, high) is False:
        # A failure is as clear as the end nearest to the threshold, or a wide interval that fails narrowly would be shown in
        # place of a narrow one that fails clearly.
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
    return f"{case.label} {e.value:.3g}" + ("" if np.isnan(e.low) else f" [{e.low:.3g}, {e.high:.3g}]")
