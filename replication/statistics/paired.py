"""Paired comparisons: what one method or setting gains over another, seeds and items in pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from replication.names import HEADLINE, TUNING_SEED
from replication.randomness import numpy_stream
from replication.statistics.accuracies import Tables, answers, runs_of, templates_of
from replication.statistics.intervals import POWER, Estimate, bootstrap

#: Names of both sides of two contrasts that ask whether a difference comes from T-SPMO's credit or from its sparsity.
CREDIT = ("all tokens with T-SPMO's credit added", "all tokens")
SPARSITY = ("T-SPMO's tokens alone", CREDIT[0])
_TOKENS = {
    "earliest": "the earliest tokens", "latest": "the latest tokens", "entropy": "the tokens of highest entropy",
    "low_entropy": "the tokens of lowest entropy", "prefix_cut": "a random prefix", "unbiased": "random tokens, weighed anew",
}  # fmt: skip
_GAP = ("seeds", "items", "difference", "difference_low", "difference_high", "equal_within", "design_effect")


def pair(tables: Tables, left: pd.DataFrame, right: pd.DataFrame, split: str = "test") -> tuple[pd.DataFrame, pd.DataFrame]:
    """The answers of two sets of runs over the seeds and items that both have; the untrained base goes with every seed."""
    a, b = answers(tables, left, split), answers(tables, right, split)
    items = a.columns.intersection(b.columns)
    seeds_a, seeds_b = a.index, b.index
    if not ((left["method"] == "base").any() or (right["method"] == "base").any()):
        seeds_a = seeds_b = a.index.intersection(b.index)
    return a.loc[seeds_a, items], b.loc[seeds_b, items]


def difference(tables: Tables, left: pd.DataFrame, right: pd.DataFrame, split: str = "test") -> Estimate | None:
    """Accuracy of the runs ``left`` minus ``right`` on a split, a fraction with its interval; None where they share none.

    The bootstrap seed depends on the run ids, so the same comparison always gets the same interval.

    Args:
        left, right: rows of runs.csv, one for each seed.
    """
    if left.empty or right.empty:
        return None
    a, b = pair(tables, left, right, split)
    if a.size == 0 or b.size == 0:
        return None
    names = [sorted(runs["run_id"]) for runs in (left, right)]
    rng = numpy_stream(0, "bootstrap", "difference", *names[0], "minus", *names[1])
    return bootstrap(a, b, rng, templates=templates_of(a))


def detectable_differences(tables: Tables, profile: str = "nano") -> pd.DataFrame:
    """For each sparse method, the smallest true difference from full-token GRPO that these seeds and items show four times in five.

    It is the half-width of the 95 % interval of the paired difference, times 1 + z(``POWER``) / z(0.975). Columns setting, method,
    seeds, items, difference, difference_low, difference_high, equal_within (see ``Estimate``), design_effect, detectable, in
    points.
    """
    runs, rows = runs_of(tables, HEADLINE, profile), []
    full, sparse = runs[runs["method"] == "grpo"], runs[runs["method"].isin(["s_grpo", "t_spmo"])]
    for (setting, method), own in sparse.groupby(["setting", "method"], sort=False):
        if gap := _gap(tables, own, full[full["setting"] == setting]):
            half = (gap["difference_high"] - gap["difference_low"]) / 2
            gap["detectable"] = half * (1 + stats.norm.ppf(POWER) / stats.norm.ppf(0.975))
            rows.append({"setting": setting, "method": method} | gap)
    return pd.DataFrame(rows, columns=["setting", "method", *_GAP, "detectable"])


def selection_gap_table(tables: Tables, profile: str) -> pd.DataFrame:
    """How much it matters which tokens are credited, and with what credit: contrasts of the token fraction, in points.

    Only those that were measured. Columns setting, tokens, reference, share (percent of the tokens) and the paired difference with
    its interval.

    Credit without sparsity: GRPO with T-SPMO's credit added minus GRPO. Sparsity at the same credit: T-SPMO minus that. T-SPMO
    and S-GRPO's rule, each minus the random share nearest to its own, within a factor of two. S-GRPO's rule minus the same without
    the prefix that it always keeps (cutoff 0). Each other choice of tokens minus as many at random, and the highest entropy minus
    all tokens. The runs that tuned a rate are left out.
    """
    runs, out = runs_of(tables, "token_fraction", profile), []
    runs = runs[runs["seed"] < TUNING_SEED]
    for setting, own in runs.groupby("setting", sort=False):
        for tokens, reference, share, left, right in _contrasts(own):
            if gap := _gap(tables, left, right):
                out.append({"setting": setting, "tokens": tokens, "reference": reference, "share": 100 * share} | gap)
    return pd.DataFrame(out, columns=["setting", "tokens", "reference", "share", *_GAP])


def _contrasts(runs: pd.DataFrame) -> Iterator[tuple[str, str, float, pd.DataFrame, pd.DataFrame]]:
    """Names of both sides, share of the tokens, and the runs of both sides, for each contrast in one setting."""
    picked, full = runs[runs["token_share"].notna()], runs[(runs["method"] == "grpo") & (runs["selector"] == "all")]
    added, trie = runs[runs["selector"] == "all_and_branches"], runs[runs["method"] == "t_spmo"]
    chance = {share: own for share, own in picked[picked["selector"] == "random"].groupby("token_share")}
    if len(added) and len(full):
        yield *CREDIT, added["kept_fraction"].mean(), added, full
    if len(trie) and len(added):
        yield *SPARSITY, trie["kept_fraction"].mean(), trie, added
    rule = runs[(runs["method"] == "s_grpo") & runs["token_share"].isna() & (runs["denominator"] == "kept")]
    # The headline runs it with the cap, the ablation without the prefix has none: a coin for each token.
    capped = rule["max_kept_tokens"].notna()
    usual, without_prefix = rule[capped], rule[~capped & (rule["cutoff"] == 0)]
    coins = [own for _, own in without_prefix.groupby("keep_probability")]
    if len(trie) and (few := _nearest([*coins, *chance.values()], trie)) is not None:
        yield "T-SPMO's tokens and credit", "as many at random", trie["kept_fraction"].mean(), trie, few
    if len(usual) and (many := _nearest(list(chance.values()), usual)) is not None:
        yield "the tokens of S-GRPO's rule", "as many at random", usual["kept_fraction"].mean(), usual, many
    if len(usual) and (bare := _nearest(coins, usual)) is not None:
        yield "the tokens of S-GRPO's rule", "those of its rule without the prefix", usual["kept_fraction"].mean(), usual, bare
    for (selector, share), own in picked[picked["selector"] != "random"].groupby(["selector", "token_share"], sort=True):
        if share in chance:
            yield _TOKENS.get(selector, selector), "random ones", share, own, chance[share]
    for share, own in picked[picked["selector"] == "entropy"].groupby("token_share") if len(full) else ():
        yield _TOKENS["entropy"], "all tokens", share, own, full


def _nearest(choices: list[pd.DataFrame], own: pd.DataFrame) -> pd.DataFrame | None:
    """The choice of tokens whose share of them is nearest to that of ``own``, if it is within a factor of two."""
    kept = own["kept_fraction"].mean()
    distances = [abs(float(np.log(choice["kept_fraction"].mean() / kept))) for choice in choices]
    near = min(distances, default=np.inf)
    return choices[distances.index(near)] if near <= np.log(2) else None


def _gap(tables: Tables, left: pd.DataFrame, right: pd.DataFrame) -> dict[str, float]:
    """The paired difference in points, as the columns ``_GAP``; empty where it was not measured."""
    found = difference(tables, left, right)
    if found is None:
        return {}
    found = found.scaled(100)
    row = {"seeds": found.seeds, "items": found.items} | found.columns("difference")
    return row | {"equal_within": found.equal_within, "design_effect": found.design_effect}
