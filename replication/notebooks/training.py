"""Training from a notebook: worker processes run what is missing, the kernel only waits, and the tables come back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from replication.ablations import PlannedRun
from replication.config import load_profile
from replication.errors import UserError
from replication.names import METHOD_LABELS
from replication.report import COLOURS, MARKERS, caption, find_tables, legend_beside, panels, percent_axis, update_tables
from replication.statistics import Tables
from replication.sweep import SweepResult, run_plan
from replication.tables import build_tables

#: Steps that show learning on the nano base within a minute; a profile with fewer keeps its own number.
STEPS = 40
#: Evaluated often enough for a curve, on few enough items to be quick.
QUICK = {"eval_every": 10, "eval_items": 100, "test_items": 100}


def train_missing(
    planned: Sequence[PlannedRun],
    profile: str,
    results_dir: str | Path,
    *,
    variant: str = "default",
    seeds: int | None = None,
    workers: int | None = None,
    train: bool = True,
) -> Tables:
    """Run the planned runs that are missing, write the tables of the whole plan, and return them.

    The arguments are the parameters of an ablation notebook; ``train`` False only reads tables, those committed for the profile
    if ``results_dir`` has none. Prints one line that says which of the two happened.

    Raises:
        UserError: some of the runs failed; the others are kept, and running the cell again tries the failed ones again.
    """
    if not train:
        tables, folder = find_tables(profile, results_dir)
        print("read from the tables" if folder else "nothing has been run yet: set train = True")
        return tables
    result = run_plan(planned, Path(results_dir) / "runs", workers=workers)
    tables = update_tables(profile, results_dir, variant=variant, seeds=seeds)
    print(f"{len(result.done)} of {len(result.planned)} runs done, {len(result.diverged)} diverged")
    _refuse_failures(result)
    return tables


def short_training(
    profile: str, methods: Sequence[str], results_dir: str | Path, *, seed: int = 0, steps: int | None = None, **fields: Any
) -> Tables:
    """Train each method for a few steps in <results_dir>/walkthrough, or find it there, and return the tables of these runs.

    Raises:
        UserError: a run failed.
    """
    planned, runs = short_plan(profile, methods, seed=seed, steps=steps, **fields), Path(results_dir) / "walkthrough"
    _refuse_failures(run_plan(planned, runs))
    return build_tables(planned, runs)


def _refuse_failures(result: SweepResult) -> None:
    if not result.ok:
        reasons = (f"{run_id} ({result.failed.get(run_id, 'not finished')})" for run_id in result.missing)
        raise UserError(f"{len(result.missing)} of {len(result.planned)} runs are missing: {'; '.join(reasons)}")


def short_plan(profile: str, methods: Sequence[str], *, seed: int = 0, steps: int | None = None, **fields: Any) -> list[PlannedRun]:
    """One run of each method, as in the headline comparison but shorter and evaluated more often.

    Args:
        profile: smoke, nano, small or paper.
        methods: of grpo, s_grpo, t_spmo, or rules of one's own.
        seed: of the runs.
        steps: optimizer steps; default 40, or the profile's if it has fewer.
        fields: other values of config fields: a task, a file of problems, a reward.
    """
    planned = []
    for method in methods:
        own = load_profile(profile, method=method, seed=seed, **fields)
        values: dict[str, Any] = {name: min(value, getattr(own, name)) for name, value in QUICK.items()}
        values["steps"] = min(STEPS, own.steps) if steps is None else steps
        planned.append(PlannedRun("walkthrough", load_profile(profile, method=method, seed=seed, **(values | fields))))
    return planned


def accuracies(tables: Tables) -> pd.DataFrame:
    """Validation accuracy of each run before and after training, and the share of credited tokens, in percent."""
    curves, rows = tables["curves"], []
    for run in tables["runs"].sort_values("method").itertuples():
        own = curves[(curves["run_id"] == run.run_id) & (curves["metric"] == "validation_accuracy")].sort_values("step")
        start = 100 * float(own["value"].iloc[0]) if len(own) else None
        end = None if pd.isna(run.validation_accuracy) else 100 * float(run.validation_accuracy)
        kept = None if pd.isna(run.kept_fraction) else 100 * float(run.kept_fraction)
        rows.append((run.method, run.steps, start, end, kept))
    return pd.DataFrame(rows, columns=["method", "steps", "before (%)", "after (%)", "tokens credited (%)"])


def learning(tables: Tables) -> Figure:
    """Reward of the rollouts and greedy validation accuracy over the steps of a short training, a line for each method."""
    figure, axes = panels("A short training", 2, height=2.6)
    curves = tables["curves"]
    for run in tables["runs"].sort_values("method").itertuples():
        own = curves[curves["run_id"] == run.run_id]
        look = {"color": COLOURS[run.method], "label": METHOD_LABELS[run.method], "marker": MARKERS[run.method], "markersize": 4}
        reward = own[own["metric"] == "reward"].sort_values("step")
        smooth = 100 * reward["value"].rolling(5, min_periods=1).mean()
        axes[0, 0].plot(reward["step"], smooth, **look | {"marker": ""})
        greedy = own[own["metric"] == "validation_accuracy"].sort_values("step")
        axes[0, 1].plot(greedy["step"], 100 * greedy["value"], **look)
    validation = "mean validation reward (%)" if tables["runs"]["reward"].notna().any() else "validation accuracy (%)"
    for axis, label in zip(axes[0], ("reward of the rollouts (%)", validation), strict=True):
        percent_axis(axis, label)
        axis.set_xlabel("optimizer step")
    legend_beside(figure, axes)
    text = "One seed. Reward: sampled, running mean of 5 steps. Validation: greedy, on problems that no step has seen."
    return caption(figure, text)
