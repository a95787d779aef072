"""The tables that a reader is shown: the CSV tables grouped and in percent, nothing measured anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from replication.names import ABLATION_LABELS as ABLATIONS
from replication.names import METHOD_LABELS as METHODS
from replication.names import TASK_LABELS as TASKS
from replication.randomness import numpy_stream
from replication.statistics import Evidence, Tables, accuracy, answers, best_rate, bootstrap, rows_of, tuning

if TYPE_CHECKING:
    from replication.ablations import PlannedRun


def plan_frame(planned: Sequence[PlannedRun]) -> pd.DataFrame:
    """A plan as rows like those of runs.csv, before anything is run."""
    fields = ("profile", "task", "method", "selector", "seed", "learning_rate", "lora_rank", "keep_probability", "steps")
    return pd.DataFrame(
        [
            # Not the run id itself: it covers the data, and a plan can be shown where that is not at hand.
            {"run_id": run.config.canonical, "ablation": run.ablation, **{name: getattr(run.config, name) for name in fields}}
            for run in planned
        ]
    )


def plan_table(plan: pd.DataFrame) -> pd.DataFrame:
    """Per ablation, task and method: seeds, settings tried, runs, optimizer steps of each.

    Args:
        plan: runs.csv, or ``plan_frame(planned)``.
    """
    rows = []
    for (ablation, task, method), own in plan.groupby(["ablation", "task", "method"], sort=False):
        rows.append(
            {
                "ablation": ABLATIONS.get(ablation, ablation),
                "task": TASKS.get(task, task),
                "method": METHODS.get(method, method),
                "seeds": own["seed"].nunique(),
                "learning rates": "" if method == "base" else listed(own["learning_rate"]),
                "ranks": "" if method == "base" else listed(own["lora_rank"]),
                "keep probabilities": listed(own["keep_probability"]),
                "runs": own["run_id"].nunique(),
                "steps each": listed(own["steps"]),
            }
        )
    return pd.DataFrame(rows)


def state_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Per ablation, how many of the distinct planned runs ended how."""
    rows = []
    for ablation, own in runs.drop_duplicates(["ablation", "run_id"]).groupby("ablation", sort=False):
        counts = own["status"].value_counts()
        states = {state: int(counts.get(state, 0)) for state in ("done", "diverged", "failed", "pending")}
        rows.append({"ablation": ABLATIONS.get(ablation, ablation), "runs": len(own), **states})
    return pd.DataFrame(rows)


def headline_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per task and method: accuracy on the test items with its 95 % seed × item interval, and what training cost and moved.

    Accuracies and fractions are in percent; KL to the base in nats per token; an empty cell was not measured.
    """
    evidence = Evidence(tables, profile)
    rows: list[dict[str, Any]] = []
    for task in [task for task in TASKS if (evidence.runs["task"] == task).any()]:
        for method in METHODS:
            estimate = accuracy(evidence, task, method)
            if estimate is None:
                continue
            estimate = estimate.scaled(100)
            row: dict[str, Any] = {"task": task, "method": method, "seeds": estimate.seeds, "items": estimate.items}
            row |= {"accuracy": estimate.value, "low": estimate.low, "high": estimate.high}
            columns = ("sampled_accuracy", "accuracy_new_stories", "held_out_accuracy", "longer_numbers_accuracy")
            columns += ("other_task_accuracy", "kept_fraction")
            row |= {name: 100 * evidence.per_seed(task, method, name).mean() for name in columns}
            row["kl_to_base"] = evidence.per_seed(task, method, "kl_to_base").mean()
            row |= {name: evidence.per_seed(task, method, name).mean() for name in ("tokens_in_loss", "predicted_flops")}
            row["diverged"] = evidence.diverged([task], [method])
            rows.append(row)
    names = ["task", "method", "seeds", "items", "accuracy", "low", "high", "sampled_accuracy", "accuracy_new_stories"]
    names += ["held_out_accuracy", "longer_numbers_accuracy", "other_task_accuracy", "kept_fraction", "kl_to_base"]
    return pd.DataFrame(rows, columns=[*names, "tokens_in_loss", "predicted_flops", "diverged"])


def gain_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per task and method: the gain in test accuracy over the base in points, split by what an answer has to achieve.

    Accuracy is a · c, with a the share of parsable answers (ended by themselves, with a number) and c the accuracy among them.
    gain = (a − a₀)(c + c₀)/2 + (c − c₀)(a + a₀)/2: from producing a parsable answer, and from answering correctly. Where one of
    the two answers nothing parsable its c does not exist, and the whole gain is one of form. Empty without ``parsed`` in the items.
    """
    evidence, rows = Evidence(tables, profile), []
    for task in [task for task in TASKS if (evidence.runs["task"] == task).any()]:
        shares = {method: evidence.parsable(task, method) for method in METHODS}
        if shares["base"] is None:
            continue
        a0, right0 = shares["base"]
        for method, share in shares.items():
            if method == "base" or share is None:
                continue
            a, right = share
            gain = right - right0
            correctness = (right / a - right0 / a0) * (a + a0) / 2 if a and a0 else 0.0
            rows.append(
                {
                    "task": task, "method": method, "parsable_before": 100 * a0, "parsable_after": 100 * a, "gain": 100 * gain,
                    "gain_of_form": 100 * (gain - correctness), "gain_of_correctness": 100 * correctness,
                }
            )  # fmt: skip
    columns = ["task", "method", "parsable_before", "parsable_after", "gain", "gain_of_form", "gain_of_correctness"]
    return pd.DataFrame(rows, columns=columns)


def prompt_table(tables: Tables, profile: str) -> pd.DataFrame:
    """prompts.csv of a profile as it is shown: shares in percent with their intervals as text, the chosen template first."""
    table = tables.get("prompts")
    if table is None or not len(table):
        return pd.DataFrame()
    rows = []
    for row in table[table["profile"] == profile].to_dict("records"):
        shown = {"task": TASKS[row["task"]], "template": row["template"] + " (used)" * bool(row["chosen"])}
        shown["items"] = "" if pd.isna(row["items"]) else str(int(row["items"]))
        for name in ("accuracy", "parsable_share", "accuracy_of_parsable", "truncated_share"):
            value, low, high = (100 * row[f"{name}{end}"] for end in ("", "_low", "_high"))
            shown[name] = "" if pd.isna(value) else f"{value:.1f} [{low:.1f}, {high:.1f}]"
        shown["note"] = "" if row["status"] == "done" else f"{row['status']}: {row['reason']}"
        rows.append(shown)
    return pd.DataFrame(rows)


def tuning_table(tables: Tables, profile: str) -> pd.DataFrame:
    """``statistics.tuning`` in percent, with ``used``: whether full against sparse runs at that rate, and ``edge``.

    low, high: at the chosen rates, the seed × item interval of the test accuracy, empty without answers per item.
    """
    runs = rows_of(tables, "learning_rate", profile)
    table = tuning({**tables, "runs": runs})
    table = table.sort_values("task", key=lambda tasks: tasks.map(list(TASKS).index), kind="stable", ignore_index=True)
    table[["validation_accuracy", "accuracy"]] *= 100
    headline = rows_of(tables, "full_vs_sparse", profile)
    used = set(zip(headline["task"], headline["method"], headline.get("learning_rate", []), strict=False))
    table["used"] = [key in used for key in zip(table["task"], table["method"], table["learning_rate"], strict=True)]
    table["edge"], table["low"], table["high"] = "", float("nan"), float("nan")
    for (task, method), own in table.groupby(["task", "method"]):
        for place in own.index[own["chosen"]]:
            rate = own.loc[place, "learning_rate"]
            table.loc[place, "edge"] = edge(rate, own["learning_rate"])
            at_rate = runs[(runs["task"] == task) & (runs["method"] == method) & (runs["learning_rate"] == rate)]
            matrix = answers(tables, at_rate)
            if matrix.size:
                found = bootstrap(matrix, None, numpy_stream(0, "bootstrap", "learning_rate", task, method)).scaled(100)
                table.loc[place, ["low", "high"]] = found.low, found.high
    return table


def token_fraction_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting: kept fraction and accuracy in percent, mean and range over seeds, from the fewest tokens to the most."""
    rows = rows_of(tables, "token_fraction", profile)
    if rows.empty:
        return pd.DataFrame(columns=["task", "method", "setting", "seeds", "kept_fraction", "accuracy", "lowest", "highest"])
    out = []
    keys = ["task", "method", "selector", "keep_probability", "max_kept_tokens", "token_share", "denominator"]
    keys = [key for key in keys if key in rows]
    for key, own in rows.groupby(keys, dropna=False, sort=False):
        named = dict(zip(keys, key, strict=True))
        accuracy = 100 * own["accuracy"]
        out.append(
            {
                "task": named["task"],
                "method": METHODS[named["method"]],
                "setting": _setting(named),
                "selector": named.get("selector"),
                "share": named.get("token_share", float("nan")),
                "seeds": own["seed"].nunique(),
                "kept_fraction": 100 * own["kept_fraction"].mean(),
                "accuracy": accuracy.mean(),
                "lowest": accuracy.min(),
                "highest": accuracy.max(),
            }  # fmt: skip
        )
    return pd.DataFrame(out).sort_values(["kept_fraction", "setting"], kind="stable", ignore_index=True)


def _setting(named: Mapping[str, Any]) -> str:
    if named["method"] == "grpo":
        return "all tokens"
    if named["method"] == "t_spmo":
        return "transitions of the trie"
    if named.get("selector", "rule") != "rule":
        share = named.get("token_share")
        return str(named["selector"]) + ("" if share is None or pd.isna(share) else f", share {share:g}")
    limit = named.get("max_kept_tokens")
    cap = "no cap" if limit is None or pd.isna(limit) else f"at most {limit:g}"
    probability = named.get("keep_probability")
    text = "rule" if probability is None or pd.isna(probability) else f"rule, keep probability {probability:g}, {cap}"
    return text + (", divided by the completion" if named.get("denominator") == "completion" else "")


def lora_rank_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per method and rank, at the learning rate that validation chooses for it: accuracy in percent, mean and range over seeds."""
    rows = rows_of(tables, "lora_rank", profile)
    out = []
    for (task, method, rank), own in rows.groupby(["task", "method", "lora_rank"], sort=True) if len(rows) else ():
        rate = best_rate(own)
        at_rate = own[own["learning_rate"] == rate].drop_duplicates("run_id")
        accuracy = 100 * at_rate["accuracy"]
        out.append(
            {
                "task": task,
                "method": METHODS[method],
                "rank": int(rank),
                "learning_rate": rate,
                "rates_tried": own["learning_rate"].nunique(),
                "edge": edge(rate, own["learning_rate"]),
                "seeds": at_rate["seed"].nunique(),
                "accuracy": accuracy.mean(),
                "lowest": accuracy.min(),
                "highest": accuracy.max(),
            }  # fmt: skip
        )
    columns = ["task", "method", "rank", "learning_rate", "rates_tried", "edge", "seeds", "accuracy", "lowest", "highest"]
    return pd.DataFrame(out, columns=columns)


def edge(rate: float, tried: pd.Series) -> str:
    """ "lowest" or "highest" if the rate is at that end of those tried, so that a better one may lie beyond; else empty.

    A single rate has no ends: it was tuned elsewhere.
    """
    if tried.nunique() < 2:
        return ""
    return "lowest" if rate == tried.min() else "highest" if rate == tried.max() else ""


def listed(values: pd.Series) -> str:
    return ", ".join(f"{value:g}" for value in sorted(set(pd.to_numeric(values, errors="coerce").dropna())))
