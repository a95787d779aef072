"""Which setting to start with on one's own task: a row for each question, answered from the tables by one rule.

The rule: the best choice is that of the highest mean test accuracy. A choice is as good if the 95 % interval of its paired
difference to the best lies wholly above -5 points: what few runs leave open is not taken for equal. Start with the cheapest of the
best and those as good, if it is cheaper by a tenth at least; otherwise with the best, and those whose interval holds 0 are named.
What fewer than five seeds say is called a first guess. See docs/which-setting.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from replication.names import HEADLINE, METHOD_LABELS, NEW_SEED, SETTING_LABELS, TUNING_SEED
from replication.report.regimes import replayed
from replication.report.style import SELECTOR_LABELS
from replication.report.wording import counted, interval, listing, number, percent
from replication.statistics import (
    NORMALISED_UP_TO,
    Tables,
    at_best_rate,
    difference,
    end_of_grid,
    ended,
    in_order,
    table,
    tuning,
)

#: A choice as good as the best is fewer points behind it than this, by its whole interval.
MARGIN = 5.0
#: Worth a change: what costs less than this share of what the best costs.
CHEAPER = 0.9
#: Fewer seeds make a first guess.
FEW_SEEDS = 5
#: What to start with, and the numbers behind it; None where the runs to compare are pending.
Answer = tuple[str, str] | None
Answers = Iterator[tuple[str, Answer]]


def advice_table(tables: Tables, profile: str) -> pd.DataFrame:
    """A row for each question that the plan of a profile asks: question, start_with ("not run" while pending) and evidence."""
    runs, rows = table(tables, "runs"), []
    runs = in_order(runs[runs["profile"] == profile], "setting", "method", "seed")
    for ablation, ask in _QUESTIONS:
        for setting, planned in runs[runs["ablation"] == ablation].groupby("setting", sort=False):
            for question, answer in ask(tables, planned):
                rows.append((f"{question}, on {SETTING_LABELS[str(setting)]}?", *(answer or ("not run", ""))))
    return pd.DataFrame(rows, columns=["question", "start_with", "evidence"])


def cheapest_as_good(tables: Tables, choices: Mapping[str, tuple[float, pd.DataFrame]]) -> Answer:
    """The cheapest of the best choice and those as good as it, over the seeds that all choices have; of equal cost the better.

    A choice is what it costs, in any unit, and its ended runs, one for a seed. Without runs it does not take part.
    """
    seeds = [set(own["seed"]) for _, own in choices.values() if len(own)]
    if len(seeds) < 2 or not (common := set.intersection(*seeds)):
        return None
    runs = {name: own[own["seed"].isin(common)] for name, (_, own) in choices.items() if len(own)}
    means = {name: 100 * float(own["accuracy"].mean()) for name, own in runs.items()}
    best, *others = sorted(runs, key=lambda name: -means[name])
    gaps = {name: gap.scaled(100) for name in others if (gap := difference(tables, runs[name], runs[best]))}
    if len(gaps) < len(others):
        return None
    as_good = [best, *(name for name, gap in gaps.items() if gap.low > -MARGIN)]
    behind = listing([f"{name} {interval(gap.value, gap.low, gap.high)}" for name, gap in gaps.items()])
    size = f"{counted(len(common), 'seed')}, {counted(min(gap.items for gap in gaps.values()), 'item')}"
    evidence = f"{best} {percent(means[best])}; differences to it in points: {behind}; {size}"
    worth_it = [name for name in as_good if name == best or choices[name][0] < CHEAPER * choices[best][0]]
    chosen = min(worth_it, key=lambda name: choices[name][0])
    alike = [name for name, gap in gaps.items() if chosen == best and gap.high >= 0]
    said = [f"not clearly different from {listing(alike)}"] if alike else []
    said += [f"as good as {best}, and cheaper"] if chosen != best else []
    said += [f"a first guess, {counted(len(common), 'seed')}"] if len(common) < FEW_SEEDS else []
    return chosen + (f" ({'; '.join(said)})" if said else ""), evidence


def _method(tables: Tables, planned: pd.DataFrame) -> Answers:
    runs = ended(planned[~planned["method"].isin(["base", "ppo"])])
    runs = runs.assign(cost=runs["tokens_generated"] + runs["tokens_forwarded"])
    choices = {METHOD_LABELS[name]: (own["cost"].mean(), own) for name, own in runs.groupby("method", sort=False)}
    answer = cheapest_as_good(tables, choices)
    most = max((tokens for tokens, _ in choices.values()), default=1)
    shares = [f"{name} {percent(100 * tokens / most)}" for name, (tokens, _) in choices.items()]
    yield "Which method", answer and (answer[0], f"{answer[1]}; tokens through the model, of the most: {listing(shares)}")


def _rate(tables: Tables, planned: pd.DataFrame) -> Answers:
    starts, evidence = [], []
    grids = planned.groupby("method")["learning_rate"].nunique()
    for method, own in in_order(tuning({"runs": planned}), "method").groupby("method", sort=False):
        # A choice among some of the rates of a grid would be one by the order in which they run.
        for row in own[own["chosen"]].itertuples() if len(own) == grids[method] > 1 else ():
            name = METHOD_LABELS[method]
            starts.append(f"{name} {row.learning_rate:g}")
            words = f"{name}: of {len(own)} rates, {counted(own['seeds'].min(), 'seed')}; "
            words += f"rates within a factor of {number(row.forgiving)} do about as well"
            alone = " to ".join(f"{rate:g}" for rate in sorted({row.peak_low, row.peak_high}))
            words += f"; single seeds choose {alone}" if pd.notna(row.peak_low) else ""
            end = end_of_grid(row.learning_rate, own["learning_rate"])
            evidence.append(words + (f"; the {end} tried" if end else ""))
    yield "Which learning rate", (listing(starts), ". ".join(evidence)) if starts else None


def _tokens(tables: Tables, planned: pd.DataFrame) -> Answers:
    runs, answer, own_rule = ended(planned), None, SELECTOR_LABELS["rule"]
    runs = runs[(runs["method"] == "s_grpo") & (runs["seed"] < TUNING_SEED)]
    # As the headline runs it: with the cap and the usual denominator.
    rule = runs[(runs["selector"] == "rule") & (runs["denominator"] == "kept") & runs["max_kept_tokens"].notna()]
    picked = runs[runs["token_share"].notna()]
    if len(rule) and len(picked):
        nearest = min(picked["token_share"], key=lambda share: abs(share - rule["kept_fraction"].mean()))
        by_selector = picked[picked["token_share"] == nearest].groupby("selector")
        others = {SELECTOR_LABELS[str(name)]: (1.0, own) for name, own in by_selector}
        answer = cheapest_as_good(tables, {own_rule: (0.0, rule), **others})
    yield "Which tokens, at S-GRPO's share of them", answer


def _rank(tables: Tables, planned: pd.DataFrame) -> Answers:
    for method, own in planned.groupby("method", sort=False):
        by_rank = {int(rank): at_best_rate(runs) for rank, runs in ended(own).groupby("lora_rank")}
        choices = {f"rank {rank}" if rank else "full fine-tuning": (rank or np.inf, runs) for rank, runs in by_rank.items()}
        answer = None if own["status"].eq("pending").any() else cheapest_as_good(tables, choices)
        yield f"Which LoRA rank for {METHOD_LABELS[method]}", answer and (answer[0], f"{answer[1]}, which also chose the rates")


def _batch(tables: Tables, planned: pd.DataFrame) -> Answers:
    runs = ended(planned[(planned["method"] == "grpo") & (planned["seed"] < NEW_SEED) & (planned["extra_splits"] == "never")])
    runs, choices = runs[runs["train_items"].isna() & (runs["eps"] <= NORMALISED_UP_TO)], {}
    for (prompts, size), own in runs.groupby(["prompts_per_step", "group_size"]):
        choices[f"{prompts:g} × {size:g}"] = (float(prompts * size), at_best_rate(own))
    answer = cheapest_as_good(tables, choices)
    answer = answer and (answer[0], f"{answer[1]}; the seed also chose the rates")
    yield "How many prompts a step × completions a prompt for GRPO", answer


def _replays(tables: Tables, planned: pd.DataFrame) -> Answers:
    runs = ended(planned)
    with_ = replayed(runs)
    yield "Replays for T-SPMO", cheapest_as_good(tables, {"no": (0.0, runs[~with_]), "yes": (1.0, runs[with_])})


def _critic(tables: Tables, planned: pd.DataFrame) -> Answers:
    if (planned["method"] == "ppo").any():
        grpo, ppo = (ended(planned[planned["method"] == method]) for method in ("grpo", "ppo"))
        yield "A critic", cheapest_as_good(tables, {"no (GRPO)": (0.0, grpo), "yes (PPO)": (1.0, ppo)})


_QUESTIONS = (
    (HEADLINE, _method), ("learning_rate", _rate), ("token_fraction", _tokens), ("lora_rank", _rank), ("regimes", _batch),
    ("replay", _replays), (HEADLINE, _critic),
)  # fmt: skip
