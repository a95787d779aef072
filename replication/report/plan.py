"""A plan and its state as tables and a sentence: what is to run, and how it went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from replication.names import ENDED
from replication.report.wording import counted, distinct
from replication.statistics import with_setting

if TYPE_CHECKING:
    from replication.ablations import PlannedRun

_FIELDS = ("profile", "task", "asides", "method", "selector", "seed", "learning_rate", "lora_rank", "keep_probability", "steps")


def plan_frame(planned: Sequence[PlannedRun]) -> pd.DataFrame:
    """A plan as rows like those of runs.csv, before anything is run."""
    # Not the run id itself: it covers the data, and a plan can be shown where that is not at hand.
    return pd.DataFrame(
        [
            {"run_id": run.config.canonical, "ablation": run.ablation, **{name: getattr(run.config, name) for name in _FIELDS}}
            for run in planned
        ]
    )


def plan_table(plan: pd.DataFrame) -> pd.DataFrame:
    """Per ablation, setting and method: seeds, settings tried, runs, optimizer steps of each.

    Args:
        plan: runs.csv, or ``plan_frame(planned)``.
    """
    rows = []
    for (ablation, setting, method), own in with_setting(plan).groupby(["ablation", "setting", "method"], sort=False):
        row = {"ablation": ablation, "setting": setting, "method": method, "seeds": own["seed"].nunique()}
        row["learning_rates"] = "" if method == "base" else distinct(own["learning_rate"])
        row["ranks"] = "" if method == "base" else distinct(own["lora_rank"])
        row |= {"keep_probabilities": distinct(own["keep_probability"]), "runs": own["run_id"].nunique()}
        rows.append(row | {"steps_each": distinct(own["steps"])})
    return pd.DataFrame(rows)


def plan_sentence(plan: pd.DataFrame) -> str:
    """How many runs of how many steps, and how many rows share a run."""
    runs = plan.drop_duplicates("run_id")
    trained = runs[runs["steps"] > 0]
    pending = runs["status"].isin(["pending", "failed"]).sum() if "status" in runs else 0
    said = (
        f"The plan: {counted(len(trained), 'training run')} of {distinct(trained['steps']) or 0} optimizer steps "
        f"({int(trained['steps'].sum()):,} steps in all), and {counted(len(runs) - len(trained), 'evaluation')} of the base. "
        f"{counted(len(plan) - len(runs), 'further row')} of the plan share a run with another ablation."
    )
    return said + (f" {counted(pending, 'run')} did not finish." if pending else "")


def state_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Per ablation, how many of the distinct planned runs ended how."""
    runs = runs.drop_duplicates(["ablation", "run_id"])
    states = pd.crosstab(runs["ablation"], runs["status"]).reindex(columns=[*ENDED, "failed", "pending"], fill_value=0)
    states.insert(0, "runs", states.sum(axis=1))
    return states.reindex(runs["ablation"].unique()).reset_index().rename_axis(columns=None)
