"""The short training of the walkthroughs: a few steps by worker processes, and the picture of what they learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from replication.ablations import PlannedRun
from replication.config import load_profile
from replication.report import style as p

#: Steps that show learning on the nano base within a minute; a profile with fewer keeps its own number.
STEPS = 40
#: Often enough for a curve, on few enough items to be quick.
QUICK = {"eval_every": 10, "eval_items": 100, "test_items": 100}


def short_plan(profile: str, methods: Sequence[str], *, seed: int = 0, steps: int | None = None) -> list[PlannedRun]:
    """One run of each method, as in the headline comparison but shorter and evaluated more often.

    Args:
        profile: smoke, nano or paper.
        methods: of grpo, s_grpo, t_spmo.
        seed: of the runs.
        steps: optimizer steps; default 40, or the profile's if it has fewer.
    """
    planned = []
    for method in methods:
        own = load_profile(profile, method=method, seed=seed)
        values: dict[str, Any] = {name: min(value, getattr(own, name)) for name, value in QUICK.items()}
        values["steps"] = min(STEPS, own.steps) if steps is None else steps
        planned.append(PlannedRun("walkthrough", load_profile(profile, method=method, seed=seed, **values)))
    return planned


def accuracies(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Validation accuracy of each run before training and after it, and what share of the tokens it credited, in percent."""
    curves, rows = tables["curves"], []
    for run in tables["runs"].sort_values("method").itertuples():
        mine = curves[(curves["run_id"] == run.run_id) & (curves["metric"] == "validation_accuracy")].sort_values("step")
        start = 100 * float(mine["value"].iloc[0]) if len(mine) else None
        end = None if pd.isna(run.validation_accuracy) else 100 * float(run.validation_accuracy)
        kept = None if pd.isna(run.kept_fraction) else 100 * float(run.kept_fraction)
        rows.append((run.method, run.steps, start, end, kept))
    return pd.DataFrame(rows, columns=["method", "steps", "before (%)", "after (%)", "tokens credited (%)"])


def learning(tables: dict[str, pd.DataFrame]) -> Figure:
    """Reward of the rollouts and greedy validation accuracy over the steps of a short training, a line for each method."""
    figure, axes = p.panels("A short training", 2, height=2.6)
    curves = tables["curves"]
    for run in tables["runs"].sort_values("method").itertuples():
        mine = curves[curves["run_id"] == run.run_id]
        look = {"color": p.COLOURS[run.method], "label": p.LABELS[run.method], "marker": p.MARKERS[run.method], "markersize": 4}
        reward = mine[mine["metric"] == "reward"].sort_values("step")
        smooth = 100 * reward["value"].astype(float).rolling(5, min_periods=1).mean()
        axes[0, 0].plot(reward["step"], smooth, **look | {"marker": ""})
        greedy = mine[mine["metric"] == "validation_accuracy"].sort_values("step")
        axes[0, 1].plot(greedy["step"], 100 * greedy["value"].astype(float), **look)
    for axis, label in zip(axes[0], ("reward of the rollouts (%)", "validation accuracy (%)"), strict=True):
        p.percent_axis(axis, label)
        axis.set_xlabel("optimizer step")
    p.legend_beside(figure, axes)
    text = "One seed. Reward: sampled, running mean of 5 steps. Validation: greedy, on problems that no step has seen."
    return p.caption(figure, text, tables["runs"])
