"""The base under each prompt template, on the validation split: prompts.csv, made before any gain is claimed.

A template that does not suit the base makes a training look good that only teaches the form. An answer is called parsable if it
ended by itself and holds a number, so that accuracy = parsable share × accuracy among the parsable ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from replication.config import ExperimentConfig, load_profile, profile_plan
from replication.console import say
from replication.errors import UserError
from replication.evaluate import ItemResult, evaluate
from replication.models import check_sizes, load_policy
from replication.statistics import mean_over_items, wilson
from replication.tables import KINDS, frame, read_tables, write_tables
from replication.tasks import PROMPT_TEMPLATES as TEMPLATES

OWN = "own"  # the task's own prompts, where the profile sets no template


def configs(profile: str, task: str | None = None, **overrides: Any) -> list[ExperimentConfig]:
    """An evaluation of the base for each of the profile's tasks and each template; first the one that the runs use.

    With ``task`` that one alone; a file of problems (``data``) means task jsonl.
    """
    only = task or ("jsonl" if overrides.get("data") else None)
    listed = []
    for task in [setting["task"] for setting in profile_plan(profile)["settings"]] if only is None else [only]:
        own = {key: value for key, value in overrides.items() if key != "svamp_source" or task == "svamp"}
        chosen = load_profile(profile, task=task, method="base", **(own | {"steps": 0}))
        others = [name for name in TEMPLATES if name != chosen.prompt_template]
        listed += [chosen, *(chosen.model_copy(update={"prompt_template": name}) for name in others)]
    return listed


def measure_prompts(profile: str, out: str | Path, *, task: str | None = None, **overrides: Any) -> pd.DataFrame:
    """Evaluate the base under each template, write ``out``/prompts.csv after each, and return the table.

    A row that is there already for the same model, data and settings is kept. A template that the model does not have is in the
    table with its reason.

    Args:
        profile: whose tasks, model and number of validation items (``eval_items``).
        task: only this one; a file of problems (``data``) means task jsonl.
        overrides: other values of config fields.
    """
    planned = configs(profile, task, **overrides)
    for config in planned:  # raises where the data are missing: what a row lacks below is its template
        config.model_copy(update={"prompt_template": None}).load_task()
    earlier = _earlier(Path(out))
    rows: list[dict[str, Any]] = []
    policy = None
    for config in planned:
        row = {"profile": profile, "model": config.model, "task": config.task, "template": config.prompt_template or OWN}
        row["chosen"] = config.task not in {other["task"] for other in rows}
        try:
            row["run_id"] = config.run_id
        except UserError as error:
            rows.append(row | {"status": "not run", "reason": str(error)})
            continue
        if row["run_id"] in earlier:
            rows.append(earlier[row["run_id"]] | {"chosen": row["chosen"]})
            continue
        policy = policy or load_policy(config)
        loaded = config.load_task()
        check_sizes(policy, config, loaded)
        rows.append(row | {"status": "done"} | shares(evaluate(policy, config, loaded, loaded.validation[: config.eval_items])))
        write_tables({"prompts": _frame(rows)}, out)
        say(f"{config.task} {row['template']}: accuracy {rows[-1]['accuracy']:.3f} on {rows[-1]['items']} items")
    write_tables({"prompts": _frame(rows)}, out)
    return _frame(rows)


def shares(results: Sequence[ItemResult]) -> dict[str, float | int]:
    """Counts of some answers as shares with their Wilson 95 % intervals; a share of nothing is NaN.

    Under a reward of one's own the two accuracies are mean rewards, with t intervals over the items.
    """
    parsable = [result for result in results if result.parsed and not result.sample.truncated]
    own = bool(results) and results[0].correct is None

    def scores(some: Sequence[ItemResult]) -> list[float]:
        return [result.reward if own else float(bool(result.correct)) for result in some]

    parts = {
        "accuracy": (sum(scores(results)), len(results)),
        "parsable_share": (len(parsable), len(results)),
        "accuracy_of_parsable": (sum(scores(parsable)), len(parsable)),
        "truncated_share": (sum(result.sample.truncated for result in results), len(results)),
        "stopped_share": (sum(result.sample.stopped for result in results), len(results)),
    }
    rewarded = {"accuracy": results, "accuracy_of_parsable": parsable} if own else {}
    row: dict[str, float | int] = {"items": len(results)}
    for name, (count, n) in parts.items():
        low, high = wilson(count, n)
        if name in rewarded and (scored := rewarded[name]):
            estimate = mean_over_items(scores(scored))
            low, high = max(estimate.low, 0.0), min(estimate.high, 1.0)
        row |= {name: count / n if n else float("nan"), f"{name}_low": low, f"{name}_high": high}
    return row


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return frame(rows, KINDS["prompts"], ["profile"])


def _earlier(out: Path) -> dict[str, dict[str, Any]]:
    if not (out / "prompts.csv").exists():
        return {}
    table = read_tables(out)["prompts"]
    return {row["run_id"]: row for row in table[table["status"] == "done"].to_dict("records")}
