"""What one setting of an ablation gains over another, with intervals: seeds and items in pairs."""

from __future__ import annotations

import pandas as pd

from replication.names import METHOD_LABELS as METHODS
from replication.statistics.estimates import gap
from replication.statistics.evidence import Tables, rows_of
from replication.statistics.intervals import Estimate
from replication.statistics.rates import best_rate

_TOKENS = {"earliest": "the earliest tokens", "latest": "the latest tokens", "entropy": "the tokens of highest entropy"}
_GAP = ("seeds", "items", "gap", "low", "high")


def rank_gap_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per task, rank and sparse method: its accuracy minus that of full-token GRPO in points, each at its own best rate.

    Seeds and items in pairs, with the seed × item interval; that the rates were chosen is not part of it.
    """
    rows = rows_of(tables, "lora_rank", profile)
    out = []
    for (task, rank), own in rows.groupby(["task", "lora_rank"], sort=True) if len(rows) else ():
        at_best = {method: mine[mine["learning_rate"] == best_rate(mine)] for method, mine in own.groupby("method")}
        for method in [method for method in ("s_grpo", "t_spmo") if method in at_best and "grpo" in at_best]:
            found = gap(tables, at_best[method], at_best["grpo"], "lora_rank", task, int(rank), method)
            out.append({"task": task, "rank": int(rank), "method": METHODS[method], **_gap_row(found)})
    return pd.DataFrame(out, columns=["task", "rank", "method", *_GAP])


def selection_gap_table(tables: Tables, profile: str) -> pd.DataFrame:
    """What it matters which tokens are credited, and how they are weighed: contrasts of the token fraction, in points.

    Columns setting, reference, share (percent of the tokens) and the gap with its seed × item interval, seeds and items in
    pairs: each rule that picks a share of the tokens minus picking as many at random; the highest entropy minus all tokens;
    S-GRPO's own rule minus the random share nearest to its own; and S-GRPO with the other denominator minus itself.
    """
    rows = rows_of(tables, "token_fraction", profile)
    out = []
    if len(rows) and "token_share" in rows:
        picked = rows[rows["token_share"].notna()]
        chance = {share: own for share, own in picked[picked["selector"] == "random"].groupby("token_share")}
        for (selector, share), own in picked[picked["selector"] != "random"].groupby(["selector", "token_share"], sort=True):
            if share in chance:
                found = gap(tables, own, chance[share], "selector", selector, str(share))
                out.append({"setting": _TOKENS[selector], "reference": "random ones", "share": 100 * share, **_gap_row(found)})
        full = rows[rows["method"] == "grpo"]
        for share, own in picked[picked["selector"] == "entropy"].groupby("token_share") if len(full) else ():
            found = gap(tables, own, full, "entropy against all", str(share))
            out.append({"setting": _TOKENS["entropy"], "reference": "all tokens", "share": 100 * share, **_gap_row(found)})
        rule = rows[(rows["method"] == "s_grpo") & rows["token_share"].isna()]
        usual = _at_the_profile(rule)
        if len(usual) and chance:
            kept = usual["kept_fraction"].mean()
            nearest = min(chance, key=lambda share: abs(share - kept))
            found = gap(tables, usual, chance[nearest], "rule against random")
            names = {"setting": "the tokens of S-GRPO's rule", "reference": f"{100 * nearest:g} % at random"}
            out.append(names | {"share": 100 * kept, **_gap_row(found)})
        other = rule[rule["denominator"] != "kept"] if "denominator" in rule else rule.iloc[:0]
        if len(usual) and len(other):
            found = gap(tables, other, usual, "denominator")
            names = {"setting": "S-GRPO with weights by all tokens of a completion", "reference": "by the kept ones"}
            out.append(names | {"share": 100 * other["kept_fraction"].mean(), **_gap_row(found)})
    return pd.DataFrame(out, columns=["setting", "reference", "share", *_GAP])


def _gap_row(found: Estimate | None) -> dict[str, float]:
    if found is None:
        return {}
    return dict(zip(_GAP, (found.seeds, found.items, found.value, found.low, found.high), strict=True))


def _at_the_profile(rule: pd.DataFrame) -> pd.DataFrame:
    """S-GRPO as the headline runs it: of its settings the one with the cap and the usual denominator."""
    if not {"denominator", "max_kept_tokens"} <= set(rule.columns):
        return rule.iloc[:0]
    return rule[(rule["denominator"] == "kept") & rule["max_kept_tokens"].notna()]
