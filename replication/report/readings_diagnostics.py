"""What the figures of the diagnostics say in words; like ``readings``, every number computed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from replication.names import METHOD_LABELS as METHODS
from replication.names import TASK_LABELS as TASKS
from replication.report.figures_diagnostics import CONTENDERS, base_credit, of
from replication.report.figures_regularisation import PRICES, prices
from replication.report.wording import digits
from replication.statistics import Tables, mean_over_seeds, rows_of

_MAIN = tuple(CONTENDERS)[:3]
_TRAINED = ("grpo", "s_grpo", "t_spmo")


def credit_vs_truth(tables: Tables, profile: str) -> list[str]:
    """How much credit falls on decisive tokens with the right sign, and how much gradient comes from decisive tokens."""
    credit = _credit(tables, profile)
    if credit.empty:
        return ["Not run."]
    decisive = of(credit, ("generated", "generated"), "tokens_decisive")[0]
    right = [f"{METHODS[name[0]]} {_interval(*of(credit, name, 'credit_right'), ' %')}" for name in _MAIN]
    signs = [of(credit, name, "sign_right")[0] for name in _MAIN]
    gradient = [f"{METHODS[name[0]]} {_interval(*of(credit, name, 'gradient_decisive'), ' %')}" for name in _MAIN]
    second = f"Of the gradient, decisive tokens make {'; '.join(gradient)}."
    if of(credit, _MAIN[0], "gradient_decisive")[1] > of(credit, _MAIN[0], "credit_decisive")[2]:
        second += " A token that the policy is sure of has hardly any gradient, whatever its credit: so full-token GRPO's gradient"
        second += " comes from decisive tokens far more than its credit alone would say."
    return [
        f"{decisive:.0f} % of the generated tokens are decisive in form; of a method's credit, the part on decisive tokens that "
        f"changed the chance to be right, with the right sign, is {'; '.join(right)}. Where something was decided, at least "
        f"{min(signs):.0f} % of the credit has the right sign.",
        second,
    ]


def worked_example(tables: Tables, profile: str) -> list[str]:
    """The token of the example that decided most, and what share of the completion's credit each method gives it."""
    rows = tables.get("worked_example")
    rows = rows if rows is None else rows[rows["profile"] == profile]
    if rows is None or rows.empty:
        return ["Not run."]
    sentences = []
    for _, own in rows.sort_values(["correct", "completion"], ascending=False, kind="stable").groupby("completion", sort=False):
        worth = own.drop_duplicates("position").set_index("position")["worth"].dropna()
        if worth.empty:
            continue
        place = int(worth.abs().idxmax())
        token = own[own["position"] == place]["token"].iloc[0]
        parts = []
        for method, selector in _MAIN:
            mine = own[(own["method"] == method) & (own["selector"] == selector)]
            total = mine["credit"].abs().sum()
            here = mine.loc[mine["position"] == place, "credit"].abs().sum()
            parts.append(f"{METHODS[method]} {100 * here / total:.0f} %" if total > 0 else f"{METHODS[method]} no credit at all")
        kind = "right" if own["correct"].iloc[0] else "wrong"
        sentences.append(
            f"In the {kind} completion the token {str(token).strip()!r} at position {place} changed the chance to be right "
            f"most, by {100 * worth[place]:+.0f} points; of the completion's credit it gets from {', from '.join(parts)}."
        )
    return sentences or ["Not run."]


def gradient_snr(tables: Tables, profile: str) -> list[str]:
    """Signal to noise per update and per token, and which selector has the most signal."""
    credit = _credit(tables, profile)
    if credit.empty:
        return ["Not run."]
    update = [f"{METHODS[name[0]]} {_interval(*of(credit, name, 'snr_update'))}" for name in _MAIN]
    tokens = {name: of(credit, name, "snr_per_1000_tokens")[0] for name in _MAIN}
    best = max(CONTENDERS, key=lambda name: of(credit, name, "snr_update")[0])
    worst = min(CONTENDERS, key=lambda name: of(credit, name, "snr_update")[0])
    cosine = [f"{METHODS[name[0]]} {_interval(*of(credit, name, 'cosine_with_grpo'))}" for name in _MAIN[1:]]
    ratios = [f"{METHODS[name[0]]} {tokens[name] / tokens[_MAIN[0]]:.2g} times" for name in _MAIN[1:]]
    return [
        f"The signal-to-noise ratio of an update is {'; '.join(update)}; of all rules it is highest for {CONTENDERS[best]} "
        f"({digits(of(credit, best, 'snr_update')[0])}) and lowest for {CONTENDERS[worst]} "
        f"({digits(of(credit, worst, 'snr_update')[0])}). Per token in the loss, {' and '.join(ratios)} that of full-token GRPO.",
        f"The cosine between the expected gradient and that of full-token GRPO is {'; '.join(cosine)}: what differs from 1 is "
        "another direction, which no number of samples averages out.",
    ]


def regularisation(tables: Tables, profile: str) -> list[str]:
    """Per task, drift, gap and held-out accuracy beside the test accuracy that they must be judged at."""
    rows = rows_of(tables, "full_vs_sparse", profile)
    rows = rows[rows["method"] != "base"]
    if rows.empty or "kl_to_base" not in rows:
        return ["Not run."]
    rows = rows.assign(gap=rows["train_accuracy"] - rows["accuracy"])
    sentences = []
    for task, own in rows.groupby("task", sort=False):
        parts = []
        for method in _TRAINED:
            mine = own[own["method"] == method]
            if mine.empty:
                continue
            text = f"{METHODS[method]} (test {100 * mine['accuracy'].mean():.1f} %) {_seeds(mine['kl_to_base'])} nats and "
            text += f"{_seeds(100 * mine['gap'], '+.1f')} points"
            held_out = mine["held_out_accuracy"].dropna() if "held_out_accuracy" in mine else []
            longer = mine["longer_numbers_accuracy"].dropna() if "longer_numbers_accuracy" in mine else []
            text += f", held-out templates {100 * held_out.mean():.1f} %" if len(held_out) else ""
            parts.append(text + (f", longer numbers {100 * longer.mean():.1f} %" if len(longer) else ""))
        sentences.append(f"Trained on {TASKS[task]}, drift from the base and train minus test accuracy: {'; '.join(parts)}.")
        for method in _TRAINED[1:]:
            changes = _minus_full(own, method)
            if changes:
                sentences.append(f"{METHODS[method]} minus full-token GRPO there, seeds in pairs: {', '.join(changes)}.")
    return sentences


#: What regularisation could show in: column, name, factor, and how its difference is written.
_DIFFERENCES = (
    ("kl_to_base", "KL", 1.0, "+.3f", " nats"),
    ("gap", "train minus test", 100.0, "+.1f", " points"),
    ("held_out_accuracy", "held-out templates", 100.0, "+.1f", " points"),
    ("longer_numbers_accuracy", "longer numbers", 100.0, "+.1f", " points"),
    ("other_task_accuracy", "the task not trained", 100.0, "+.1f", " points"),
    ("entropy", "entropy", 1.0, "+.3f", " nats per token"),
)


def _minus_full(rows: pd.DataFrame, method: str) -> list[str]:
    """A sparse method minus full-token GRPO in all that regularisation could show in, over the seeds both have."""
    of = {name: own.drop_duplicates("run_id").set_index("seed") for name, own in rows.groupby("method")}
    if method not in of or "grpo" not in of:
        return []
    words = []
    for column, name, factor, form, unit in _DIFFERENCES:
        if column in rows:
            change = (of[method][column] - of["grpo"][column]).dropna()
            words += [f"{name} {_seeds(factor * change, form)}{unit}"] if len(change) else []
    return words


def price_of_accuracy(tables: Tables, profile: str) -> list[str]:
    """Per task, what each sparse method spends until the level of the figure, in percent of what full-token GRPO does."""
    runs = tables.get("runs")
    if runs is None or not len(runs):
        return ["Not run."]
    table = prices({**tables, "runs": runs[runs["profile"] == profile]})
    sentences = []
    for task in [task for task in TASKS if (table["task"] == task).any()]:
        own = table[table["task"] == task]
        parts = []
        for method in [method for method in _TRAINED[1:] if {method, "grpo"} <= set(own["method"])]:
            shares = [(_share_of_full(own, method, name), " ".join(label.split())) for name, label in PRICES]
            words = [f"{share} of the {label}" for share, label in shares if share]
            parts.append(f"{METHODS[method]} {', '.join(words)}" if words else f"{METHODS[method]}: no seed got there in both")
        reached = own.groupby("method")["step"].agg(["count", "size"])
        reached = reached[reached["count"] < reached["size"]]
        short = [f"{METHODS[method]} {row['count']} of {row['size']}" for method, row in reached.iterrows()]
        sentences.append(
            f"Until {own['level'].iloc[0]:.0f} % on the validation items of {TASKS[task]}, of what full-token GRPO takes under the "
            f"same seed: {'; '.join(parts)}."
            + (f" Seeds that got there: {'; '.join(short)}; the others would have cost more." if short else "")
        )
    if sentences and table[["seconds", "update_seconds"]].notna().any(axis=None):
        sentences.append(
            "Tokens and FLOPs are counted. Seconds are those of the machine that trained: other work on it fell on some runs and "
            "not on others, so they compare methods only roughly."
        )
    return sentences or ["Not run."]


def _share_of_full(prices_: pd.DataFrame, method: str, name: str) -> str:
    """Percent of full-token GRPO's price: geometric mean over the seeds where both got there, with the t interval of the logs."""
    wide = prices_.pivot(index="seed", columns="method", values=name)
    both = wide[[method, "grpo"]].dropna()
    both = both[(both > 0).all(axis=1)]
    if both.empty:
        return ""
    logs = mean_over_seeds(np.log(both[method] / both["grpo"]))
    value, low, high = (100 * np.exp(end) for end in (logs.value, logs.low, logs.high))
    return f"{digits(value)} %" + ("" if np.isnan(low) else f" [{digits(low)}, {digits(high)}]")


def _credit(tables: Tables, profile: str) -> pd.DataFrame:
    credit = base_credit(tables)
    return credit[credit["profile"] == profile]


def _interval(value: float, low: float, high: float, unit: str = "") -> str:
    return f"{digits(value)}{unit} [{digits(low)}, {digits(high)}]"


def _seeds(values: pd.Series, form: str = ".3f") -> str:
    estimate = mean_over_seeds(values.dropna())
    interval = f" [{estimate.low:{form}}, {estimate.high:{form}}]" if pd.notna(estimate.low) else ""
    return f"{estimate.value:{form}}{interval}"
