"""Accuracies and paired differences of made-up tables, beside what the tables say when worked out another way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import synthetic_tables
from scipy import stats

from replication.errors import UserError
from replication.names import HEADLINE
from replication.randomness import numpy_stream
from replication.statistics import (
    accuracy,
    answers,
    at_best_rate,
    best_rate,
    detectable_differences,
    difference,
    mean_over_seeds,
    runs_of,
    seed_spread,
    selection_gap_table,
    wilson,
)  # fmt: skip


def test_seed_spread_keeps_seeds_and_items_apart():
    tables = synthetic_tables.headline(seeds=4)
    spread = seed_spread(tables).set_index(["setting", "method"])
    runs = tables["runs"]
    mine = runs[(runs["task"] == "word_problems") & (runs["method"] == "grpo")]["accuracy"]
    row = spread.loc[("word_problems after", "grpo")]
    assert (row["seeds"], row["items"]) == (4, 300)
    assert row["seed_sd"] == pytest.approx(mine.std(ddof=1))
    items = tables["items"][tables["items"]["run_id"].isin(runs["run_id"][mine.index])].groupby("item_id")["correct"].mean()
    half = stats.t.ppf(0.975, 299) * items.std(ddof=1) / np.sqrt(300)
    assert (row["items_low"], row["items_high"]) == pytest.approx((items.mean() - half, items.mean() + half))
    base = spread.loc[("word_problems after", "base")]
    assert (base["items_low"], base["items_high"]) == wilson(round(base["mean"] * 300), 300)
    assert np.isnan(spread.loc[("word_problems after", "base"), "seed_sd"])
    assert seed_spread({}).empty


def test_the_runs_of_a_reader_are_shown_as_ours_are():
    """Those of another model, of a smoke test or of a reward of one's own are evidence for no claim, and had no rows here."""
    tables = synthetic_tables.headline(seeds=2, items=30)
    runs = tables["runs"]
    for field, value in {"model": "/a/folder", "profile": "smoke", "reward": "mine:share"}.items():
        mine, profile = {**tables, "runs": runs.assign(**{field: value})}, value if field == "profile" else "nano"
        for rows_of in (seed_spread, detectable_differences):
            pd.testing.assert_frame_equal(rows_of(mine, profile), rows_of(tables, "nano"))


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five():
    few, many = (detectable_differences(synthetic_tables.headline(seeds=n)).set_index(["setting", "method"]) for n in (3, 10))
    assert list(few.index) == [(t, m) for t in ("word_problems after", "multiplication") for m in ("s_grpo", "t_spmo")]
    half = (few["difference_high"] - few["difference_low"]) / 2
    # A normal estimate with the true value at `detectable` has an interval of this half-width wholly above 0 in 80 %.
    z = numpy_stream(0, "bootstrap", "test", 18).normal(size=20_000)
    for name, row in few.iterrows():
        found = row["detectable"] + z * half[name] / 1.959964 - half[name] > 0
        assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert (many["detectable"] < few["detectable"]).all(), "more seeds show smaller differences"
    assert set(few["seeds"]) == {3} and set(few["items"]) == {300}
    assert detectable_differences({}).empty


def test_the_best_rate_is_judged_on_the_seeds_that_all_rates_share():
    def runs(*points: tuple[float, int, float]) -> pd.DataFrame:
        return pd.DataFrame(points, columns=["learning_rate", "seed", "validation_accuracy"])

    nan = float("nan")
    assert best_rate(runs((1e-3, 0, 0.8), (3e-3, 0, 0.7), (3e-3, 1, 0.99))) == 1e-3
    assert best_rate(runs((1e-3, 0, 0.8), (3e-3, 0, 0.7), (1e-3, 1, 0.5), (3e-3, 1, 0.9))) == 3e-3
    assert best_rate(runs((3e-3, 0, 0.8), (1e-3, 0, 0.8))) == 1e-3, "the lower of equals"
    assert best_rate(runs((1e-3, 0, nan), (3e-3, 0, 0.1))) == 3e-3, "without a number a rate cannot be chosen"
    assert best_rate(runs((1e-3, 0, nan), (3e-3, 0, nan))) == 1e-3
    assert best_rate(runs((1e-3, 0, 0.6), (3e-3, 1, 0.7))) == 3e-3, "no common seed: all count"
    at_best = at_best_rate(runs((1e-3, 0, 0.8), (3e-3, 0, 0.7), (1e-3, 1, 0.8)))
    assert at_best["seed"].tolist() == [0, 1] and set(at_best["learning_rate"]) == {1e-3}


def _runs(tables, task: str, method: str) -> pd.DataFrame:
    runs = runs_of(tables, HEADLINE, "nano")
    return runs[(runs["task"] == task) & (runs["method"] == method)]


def test_one_accuracy_has_one_interval_whoever_asks_and_whatever_else_is_in_the_tables():
    tables = synthetic_tables.headline(items=80)
    own = _runs(tables, "word_problems", "grpo")
    alone = {name: frame[frame["run_id"].isin(own["run_id"])] for name, frame in tables.items()}
    # As texts, since NaN equals nothing: from Python 3.13 on, dataclasses are compared field by field.
    assert repr(accuracy(tables, own)) == repr(accuracy(alone, own.iloc[::-1]))
    assert accuracy(tables, own).value == pytest.approx(own["accuracy"].mean())
    assert accuracy(tables, own.iloc[:0]) is None
    # Without answers per item, what is left is the spread over seeds.
    assert repr(accuracy({"runs": tables["runs"]}, own)) == repr(mean_over_seeds(own["accuracy"]))


def test_templates_of_the_items_widen_the_interval_and_are_counted():
    tables = synthetic_tables.headline(items=90)
    own = _runs(tables, "word_problems", "grpo")
    items = tables["items"]
    # Right answers gathered into whole templates: each of the 30 is right or wrong as one.
    rank = items.groupby("run_id")["correct"].rank(method="first")
    items["template"] = ("t" + (rank // 3).astype(int).astype(str)).where(items["run_id"].isin(own["run_id"][:1]))
    items["template"] = items.groupby("item_id")["template"].transform("first")
    plain = accuracy({**tables, "items": items.drop(columns="template")}, own)
    nested = accuracy(tables, own)
    assert nested.design_effect > 1.5 and np.isnan(plain.design_effect)
    assert nested.high - nested.low > 1.2 * (plain.high - plain.low) and nested.value == plain.value
    spread = seed_spread(tables).set_index(["setting", "method"])
    assert spread.loc[("word_problems after", "grpo"), "design_effect"] == pytest.approx(nested.design_effect, rel=1e-12)


def test_only_the_test_items_count():
    tables = synthetic_tables.headline(items=40)
    own = _runs(tables, "word_problems", "grpo")
    train = tables["items"].assign(split="train", correct=1, item_id="train-" + tables["items"]["item_id"])
    both = {**tables, "items": pd.concat([tables["items"].assign(split="test"), train])}
    pd.testing.assert_frame_equal(answers(both, own), answers(tables, own))


def test_a_difference_is_taken_over_the_seeds_that_both_have():
    tables = synthetic_tables.headline(seeds=4, items=60)
    grpo, sparse = _runs(tables, "word_problems", "grpo"), _runs(tables, "word_problems", "s_grpo")
    fewer = sparse[sparse["seed"] != 2]
    found = difference(tables, fewer, grpo)
    assert found.seeds == 3 and found.items == 60
    assert found.value == pytest.approx(fewer["accuracy"].mean() - grpo.loc[grpo["seed"] != 2, "accuracy"].mean())
    base = _runs(tables, "word_problems", "base")
    gain = difference(tables, grpo, base)
    assert gain.seeds == 4 and gain.value == pytest.approx(grpo["accuracy"].mean() - base["accuracy"].mean())
    assert difference(tables, sparse[sparse["seed"] == 0], grpo[grpo["seed"] == 1]) is None
    assert difference(tables, sparse, grpo.iloc[:0]) is None


def test_answers_that_are_not_of_their_run_are_refused():
    tables = synthetic_tables.headline(items=20)
    own = _runs(tables, "word_problems", "grpo")
    with pytest.raises(UserError, match="rebuild the tables"):
        answers(tables, own.assign(accuracy=0.123))


def test_a_base_with_more_items_is_compared_over_the_shared_ones_alone():
    tables = synthetic_tables.headline(items=60, base_items=200, seeds=2)
    grpo, base = (_runs(tables, "word_problems", method) for method in ("grpo", "base"))
    wide = tables["items"].pivot(index="item_id", columns="run_id", values="correct")[[*grpo["run_id"], *base["run_id"]]].dropna()
    assert len(wide) == 60
    expected = wide[grpo["run_id"]].mean(axis=1).mean() - wide[base["run_id"].iloc[0]].mean()
    gain = difference(tables, grpo, base)
    assert (gain.items, gain.value) == (60, pytest.approx(expected))
    assert abs(grpo["accuracy"].mean() - base["accuracy"].iloc[0] - expected) > 1e-3, "the means alone say something else"
    assert accuracy(tables, base).items == 200
    spread = seed_spread(tables).set_index(["setting", "method"])["items"]
    assert spread["word_problems after", "base"] == 200 and spread["word_problems after", "grpo"] == 60
    assert set(detectable_differences(tables)["items"]) == {60}


#: Choices of tokens: fields, and how many of 50 items each of two seeds has right.
CHOICES = {
    "full": ({"method": "grpo", "selector": "all", "kept_fraction": 1.0}, (40, 42)),
    "added": ({"method": "grpo", "selector": "all_and_branches", "kept_fraction": 1.0}, (43, 44)),
    "trie": ({"method": "t_spmo", "selector": "trie", "kept_fraction": 0.006}, (38, 37)),
    "few": ({"selector": "rule", "cutoff": 0, "keep_probability": 0.006, "kept_fraction": 0.008}, (30, 34)),
    # One token of each completion, whatever share was asked for.
    "one": ({"selector": "random", "token_share": 0.006, "kept_fraction": 0.026}, (44, 44)),
    "many": ({"selector": "random", "token_share": 0.36, "kept_fraction": 0.36}, (36, 33)),
    "rule": ({"selector": "rule", "cutoff": 8, "max_kept_tokens": 16, "kept_fraction": 0.35}, (41, 40)),
    "bare": ({"selector": "rule", "cutoff": 0, "keep_probability": 0.36, "kept_fraction": 0.37}, (35, 32)),
}


_EMPTY = ("token_share", "cutoff", "keep_probability", "max_kept_tokens")


def _token_choices(*left_out: str) -> dict[str, pd.DataFrame]:
    runs, items = [], []
    for name in [name for name in CHOICES if name not in left_out]:
        fields, right = CHOICES[name]
        for seed, count in enumerate(right):
            run = {"run_id": f"{name}{seed}", "ablation": "token_fraction", "profile": "nano", "task": "word_problems"}
            run |= {"asides": "after", "method": "s_grpo", "denominator": "kept", "seed": seed, "status": "done"}
            runs.append(run | {"accuracy": count / 50, **dict.fromkeys(_EMPTY, np.nan)} | fields)
            items += [{"run_id": f"{name}{seed}", "item_id": f"i{n}", "correct": int(n < count)} for n in range(50)]
    return {"runs": pd.DataFrame(runs), "ablation_items": pd.DataFrame(items)}


def test_credit_and_sparsity_each_have_a_contrast_of_their_own():
    table = selection_gap_table(_token_choices(), "nano")
    # Right answers of both seeds together, left minus right; 100 answers, so each is a point.
    by_hand = [
        (87 - 82, 100.0),  # credit without sparsity: added minus full
        (75 - 87, 0.6),  # sparsity at the same credit: trie minus added
        (75 - 64, 0.6),  # the same sparsity, other credit: trie minus few
        (81 - 69, 35.0),  # S-GRPO's rule minus many
        (81 - 67, 35.0),  # S-GRPO's rule minus bare
    ]
    assert table["difference"].tolist() == pytest.approx([gap for gap, _ in by_hand])
    assert table["share"].tolist() == pytest.approx([share for _, share in by_hand])
    assert (table["difference_low"] <= table["difference"]).all() and (table["difference"] <= table["difference_high"]).all()
    assert set(table["seeds"]) == {2}


def test_random_tokens_at_another_share_are_no_match_for_t_spmo():
    """The default plan has random tokens at S-GRPO's share alone, sixty times that of T-SPMO. What counts is what was kept."""
    assert selection_gap_table(_token_choices("few"), "nano")["difference"].tolist() == pytest.approx([5, -12, 12, 14])
    assert selection_gap_table(_token_choices("added", "few"), "nano")["difference"].tolist() == pytest.approx([12, 14])
