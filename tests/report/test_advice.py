"""Which setting to start with: the rule on made-up runs, against answers by hand.

One seed, 100 items without templates. To be 1 item behind is -1 point with an interval of about ±2, which ends above -5; to be 10
items behind is -10 with about ±6, which does not. To be 4 behind is -4 with about ±4: no clear difference, and not as good.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from replication.report import advice_table

_EMPTY = ("token_share", "train_items", "replay_successes", "replay_failures")
Run = tuple[dict, int]


def run(ablation: str, method: str, right: int, seed: int = 0, **fields) -> Run:
    """A run on word problems that answers the first ``right`` of 100 test items right."""
    row = {"ablation": ablation, "profile": "nano", "task": "word_problems", "asides": "after", "method": method, "seed": seed}
    row |= {"learning_rate": 1e-3, "validation_accuracy": 0.5, "selector": "rule", "denominator": "kept", "lora_rank": 8}
    row |= {"eps": 1e-4, "status": "done", "tokens_generated": 500.0, "tokens_forwarded": 500.0, "kept_fraction": 0.3}
    row |= {"max_kept_tokens": 16, "extra_splits": "never", "prompts_per_step": 4, "group_size": 16, "steps": 150}
    return row | dict.fromkeys(_EMPTY, np.nan) | fields, right


def advice(*runs: Run, curves: pd.DataFrame | None = None) -> dict[str, tuple[str, str]]:
    """What to start with and the evidence, by the first words of the question."""
    rows, items = [], []
    for number, (row, right) in enumerate(runs):
        rows.append(row | {"run_id": f"r{number}", "accuracy": right / 100})
        items += [{"run_id": f"r{number}", "item_id": f"i{item:02d}", "correct": int(item < right)} for item in range(100)]
    tables = {"runs": pd.DataFrame(rows), "items": pd.DataFrame(items)} | ({} if curves is None else {"curves": curves})
    table = advice_table(tables, "nano")
    return {row.question: (row.start_with, row.evidence) for row in table.itertuples()}


def only(answers: dict[str, tuple[str, str]], words: str) -> tuple[str, str]:
    ((start, evidence),) = [answer for question, answer in answers.items() if question.startswith(words)]
    # Without the names of those that it is not clearly different from, and without how few seeds there are.
    return re.split(r" \((?:not clearly|a first|as good)", start)[0], evidence


def headline(grpo: int, s_grpo: int, t_spmo: int, seed: int = 0) -> list[Run]:
    name = "full_vs_sparse"
    return [
        run(name, "grpo", grpo, seed, tokens_forwarded=500.0),
        run(name, "s_grpo", s_grpo, seed, tokens_forwarded=300.0),
        run(name, "t_spmo", t_spmo, seed, tokens_forwarded=50.0),
    ]


def test_the_method_is_the_one_with_the_fewest_tokens_of_those_as_good():
    start, evidence = only(advice(*headline(90, 89, 80)), "Which method")
    assert start == "S-GRPO"
    for words in ("GRPO 90.0 %", "S-GRPO -1.0 [", "T-SPMO -10.0 [", "1 seed, 100 items", "S-GRPO 80.0 %", "T-SPMO 55.0 %"):
        assert words in evidence
    assert only(advice(*headline(90, 80, 89)), "Which method")[0] == "T-SPMO"
    assert only(advice(*headline(90, 80, 80)), "Which method")[0] == "GRPO"
    assert only(advice(*headline(90, 86, 86)), "Which method")[0] == "GRPO", "what is left open is not as good"


def test_a_method_that_saves_less_than_a_tenth_is_not_worth_a_lower_mean():
    runs = headline(90, 89, 80)
    runs[1][0]["tokens_forwarded"] = 405.0  # 905 tokens through the model, of 1,000
    answers = advice(*runs)
    assert only(answers, "Which method")[0] == "GRPO"
    # The best by a hair used to be advised as if it were the winner: those that it is not told apart from are named.
    ((start, _),) = answers.values()
    assert "S-GRPO" in start and "T-SPMO" not in start


def test_a_seed_that_one_method_lacks_does_not_count():
    lucky = run("full_vs_sparse", "s_grpo", 100, seed=1, tokens_forwarded=300.0)
    start, evidence = only(advice(*headline(90, 80, 80), lucky), "Which method")
    assert start == "GRPO" and "1 seed," in evidence
    assert "2 seeds," in only(advice(*headline(90, 80, 80), *headline(90, 80, 80, seed=1)), "Which method")[1]


def test_an_answer_of_few_seeds_is_called_a_first_guess():
    """Two seeds advised full fine-tuning as ten would have; in those two S-GRPO was ahead by 4 points, in all ten behind."""
    for seeds, guess in ((4, True), (5, False)):
        answers = advice(*(one for seed in range(seeds) for one in headline(90, 89, 80, seed)))
        assert ("a first guess" in next(iter(answers.values()))[0]) is guess


def test_a_critic_must_be_clearly_better():
    assert not [question for question in advice(*headline(90, 89, 80)) if "critic" in question], "none is planned"
    for right, start in ((91, "no (GRPO)"), (100, "yes (PPO)"), (70, "no (GRPO)")):
        assert only(advice(*headline(90, 89, 80), run("full_vs_sparse", "ppo", right)), "A critic")[0] == start


def test_the_rate_is_that_of_validation_with_its_width():
    rates = {1e-3: 0.5, 2e-3: 0.78, 4e-3: 0.8}
    runs = [run("learning_rate", "grpo", 50, 100, learning_rate=rate, validation_accuracy=value) for rate, value in rates.items()]
    start, evidence = only(advice(*runs, run("learning_rate", "t_spmo", 50, 100)), "Which learning rate")
    assert start == "GRPO 0.004", "one rate is no choice"
    assert "factor of 2.0" in evidence and "highest" in evidence and "T-SPMO" not in evidence
    pending, right = run("learning_rate", "grpo", 0, 100, learning_rate=8e-3)
    assert only(advice(*runs, (pending | {"status": "pending"}, right)), "Which learning rate")[0] == "not run"


def tokens(rule: int, random: int, earliest: int) -> str:
    name = "token_fraction"
    runs = [run(name, "s_grpo", rule, kept_fraction=0.34)]
    for share, change in ((0.36, 0), (0.01, -40)):  # T-SPMO's share is not S-GRPO's
        runs.append(run(name, "s_grpo", random + change, selector="random", token_share=share))
    runs.append(run(name, "s_grpo", earliest, selector="earliest", token_share=0.36))
    # What tuned a rate does not count.
    runs.append(run(name, "s_grpo", 100, seed=100, selector="random", token_share=0.36))
    return only(advice(*runs), "Which tokens")[0]


def test_the_rule_stays_unless_other_tokens_are_clearly_better():
    assert tokens(rule=89, random=90, earliest=89) == "S-GRPO's rule"
    assert tokens(rule=80, random=90, earliest=89) == "uniform random"
    assert tokens(rule=80, random=88, earliest=90) == "earliest"


def test_the_rank_is_the_smallest_that_is_not_clearly_behind_the_best():
    def ranks(rights: dict[int, int]) -> str:
        # A second rate that validation likes less.
        spoilt = [run("lora_rank", "grpo", 99, lora_rank=rank, learning_rate=2e-3, validation_accuracy=0.1) for rank in rights]
        runs = [run("lora_rank", "grpo", right, lora_rank=rank) for rank, right in rights.items()]
        return only(advice(*spoilt, *runs), "Which LoRA")[0]

    assert ranks({0: 90, 1: 80, 4: 89, 8: 89}) == "rank 4"
    assert ranks({0: 90, 1: 80, 4: 80, 8: 80}) == "full fine-tuning"
    assert ranks({0: 89, 1: 90}) == "rank 1"


def test_the_batch_is_the_one_with_the_fewest_completions():
    def cell(prompts: int, size: int, right: int, seed: int = 100, **fields) -> Run:
        return run("regimes", "grpo", right, seed, prompts_per_step=prompts, group_size=size, steps=150, **fields)

    cells = [cell(1, 4, 70), cell(1, 16, 89), cell(4, 4, 80), cell(4, 16, 90)]
    # Another advantage, another training set, new seeds: not the same comparison.
    others = [cell(1, 4, 100, eps=10.0), cell(1, 4, 100, train_items=64), cell(1, 4, 100, seed=200)]
    assert only(advice(*cells, *others), "How many prompts")[0] == "1 × 16"


def test_replays_must_be_clearly_better():
    for right, start in ((81, "no"), (100, "yes"), (60, "no")):
        runs = [run("replay", "t_spmo", 80), run("replay", "t_spmo", right, replay_successes=2, replay_failures=2)]
        assert only(advice(*runs), "Replays")[0] == start


def test_what_is_pending_is_not_run():
    runs = headline(90, 89, 80)
    names = ("learning_rate", "token_fraction", "lora_rank", "regimes", "replay")
    runs += [run(name, "t_spmo", 50) for name in names] + [run("full_vs_sparse", "ppo", 50)]
    runs = [(row | {"status": "pending"}, right) for row, right in runs]
    answers = advice(*runs)
    assert len(answers) == 7 and set(answers.values()) == {("not run", "")}
    assert advice_table({}, "nano").empty
