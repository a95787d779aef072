"""Which of several cases stands in the row of a claim: the one that speaks most against it."""

from __future__ import annotations

import pytest
import synthetic_tables as synthetic

from replication.names import CLAIMS
from replication.statistics import load_claims, verdicts


@pytest.mark.parametrize("rule", ["above", "below"])
def test_of_two_failures_the_clear_one_is_shown_and_not_the_wide_one(rule):
    """N9's row showed T-SPMO, -6.8 points [-11.3, -2.9], in place of S-GRPO, -8.6 points [-11.2, -6.0].

    The cases were compared at the end of the interval that a case which holds is judged by. For a failed one the other end decides.
    """
    accuracy = {task: dict(methods) for task, methods in synthetic.ACCURACY.items()}
    sign = -1 if rule == "above" else 1
    accuracy["word_problems"] |= {"grpo": 0.5, "s_grpo": 0.5 + 0.10 * sign, "t_spmo": 0.5 + 0.09 * sign}
    tables = synthetic.headline(accuracy=accuracy, seeds=10, seed_sd=0.01)
    wide = tables["runs"].query("task == 'word_problems' and method == 't_spmo'")["run_id"]
    tables = _with_spread(tables, wide)
    claim = next(claim for claim in load_claims(CLAIMS) if claim.id == "N9")
    claim = claim.model_copy(update={"rule": rule, "tuned": False, "methods": ("s_grpo", "grpo")})
    shown = {}
    for method in ("s_grpo", "t_spmo"):
        (row,) = verdicts([claim.model_copy(update={"methods": (method, "grpo")})], tables).to_dict("records")
        assert row["verdict"] == "not supported"
        shown[method] = row
    ends = ("low", "high") if rule == "above" else ("high", "low")
    assert abs(shown["t_spmo"][ends[0]]) > abs(shown["s_grpo"][ends[0]]), "the wide interval reaches further"
    assert abs(shown["t_spmo"][ends[1]]) < abs(shown["s_grpo"][ends[1]]), "the narrow one fails more clearly"
    both = claim.model_copy(update={"methods": ("s_grpo", "t_spmo", "grpo")})
    (row,) = verdicts([both], tables).to_dict("records")
    assert (row["verdict"], row["value"]) == ("not supported", shown["s_grpo"]["value"])


def _with_spread(tables, run_ids):
    """Every second of these runs better by 8 points and every other worse, items and accuracy alike."""
    items, runs = tables["items"].copy(), tables["runs"].copy()
    for number, run_id in enumerate(run_ids):
        rows = items.index[items["run_id"] == run_id]
        changed = rows[items.loc[rows, "correct"] == (1 if number % 2 else 0)][:24]
        items.loc[changed, "correct"] = 0 if number % 2 else 1
        runs.loc[runs["run_id"] == run_id, "accuracy"] = items.loc[rows, "correct"].mean()
    return {**tables, "items": items, "runs": runs}
