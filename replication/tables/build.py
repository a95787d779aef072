"""Run directories to tidy tables: a row for every planned run, also those that are missing (pending) or failed.

A missing value is empty, never 0. What varies from machine to machine (seconds, memory) is in timings.csv alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from replication.config import run_command
from replication.names import ABLATIONS, HEADLINE
from replication.runs import RunSummary, check_files, explained, manifest, now, read_failure, read_json, read_summary
from replication.tables.csv_files import KINDS, PEAKS, SECONDS, as_text, frame, parse, run_columns

if TYPE_CHECKING:
    from replication.ablations import PlannedRun

#: Of these ablations curves.csv has the validation alone: every metric of every step of 600 runs would be 30 MB.
BRIEF = tuple(name for name in ABLATIONS if name != HEADLINE)
#: A run with less than this share of its base's accuracy has collapsed.
COLLAPSED_UNDER = 0.1
#: What the base shares with the runs that it is the base of, where a config has it.
_TASK_FIELDS = ("task", "asides", "digits", "svamp_source", "data", "reward", "model", "revision", "prompt_template")


def build_tables(planned: Sequence[PlannedRun], runs_dir: str | Path) -> dict[str, pd.DataFrame]:
    """The tables runs, curves, items, ablation_items and timings of a plan, from what lies under ``runs_dir``/<run_id>.

    items has every evaluated item of the headline runs, ablation_items the test items of all other finished runs.

    Args:
        planned: ablation and config of each run; a config in several ablations gets a row in each.
        runs_dir: the folder of run directories; it may be empty or missing.

    Raises:
        UserError: if a file of a finished run is damaged.
    """
    runs_dir = Path(runs_dir)
    configs = {run.config.run_id: run.config for run in planned}
    summaries = {run_id: read_summary(runs_dir / run_id) for run_id in configs}
    rows = [_run_row(run.ablation, run.config, summaries[run.config.run_id], runs_dir) for run in planned]
    _mark_collapsed(rows)
    headline = {run.config.run_id for run in planned if run.ablation == HEADLINE}
    whole = {run.config.run_id for run in planned if run.ablation not in BRIEF}
    finished = sorted(run_id for run_id, summary in summaries.items() if summary is not None)
    for run_id in finished:
        check_files(runs_dir / run_id)
    curves = [row for run_id in finished for row in _curve_rows(summaries[run_id], runs_dir / run_id, brief=run_id not in whole)]
    items = {True: [], False: []}
    for run_id in finished:
        found = _item_rows(run_id, runs_dir / run_id)
        items[run_id in headline] += found if run_id in headline else [row for row in found if row["split"] == "test"]
    columns = run_columns(type(planned[0].config)) if planned else KINDS["runs"]
    return {
        "runs": frame(rows, columns, ["ablation", "task", "method", "seed", "run_id"]),
        "curves": frame(curves, KINDS["curves"], ["run_id", "step", "metric"]),
        "items": frame(items[True], KINDS["items"], ["run_id", "split", "item_id"]),
        "ablation_items": frame(items[False], KINDS["ablation_items"], ["run_id", "split", "item_id"]),
        "timings": frame([_timing_row(run_id, runs_dir / run_id) for run_id in finished], KINDS["timings"], ["run_id"]),
    }


def _run_row(ablation: str, config: Any, summary: RunSummary | None, runs_dir: Path) -> dict[str, Any]:
    run_id = config.run_id
    row = {name: as_text(value) for name, value in config.model_dump(mode="json").items()}
    # The path of a default `make all`, wherever this one is: the table must not depend on the place.
    out = f"results/local/{config.profile}/runs/{run_id}"
    row |= {"run_id": run_id, "ablation": ablation, "selector": config.selector, "command": run_command(config, out)}
    if summary is not None:
        return row | {name: value for name, value in summary.model_dump().items() if name != "run_id"}
    failure = read_failure(runs_dir / run_id)
    if failure is not None:
        return row | {"status": "failed", "reason": " ".join(str(failure["reason"]).split())}
    return row | {"status": "pending"}


def _mark_collapsed(rows: Sequence[dict[str, Any]]) -> None:
    """Give the status ``collapsed`` to done runs with an accuracy under a tenth of their base's."""
    measured = [row for row in rows if row["status"] == "done" and row["accuracy"] is not None]
    bases = {_task(row): row["accuracy"] for row in measured if row["method"] == "base"}
    for row in measured:
        if row["accuracy"] < COLLAPSED_UNDER * bases.get(_task(row), 0.0):
            row["status"] = "collapsed"


def _task(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _TASK_FIELDS)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, none if there is no such file; ``check_files`` has compared it with its checksum."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def _curve_rows(summary: RunSummary, folder: Path, *, brief: bool) -> Iterable[dict[str, Any]]:
    """Every metric at every step (``brief``: of the validations), and the validation accuracy that training ended with."""
    last = None
    for row in _lines(folder / "metrics.jsonl"):
        for metric, value in row.items():
            if metric == "validation_accuracy":
                last = row["step"]
            if metric != "step" and (not brief or metric.startswith("validation_")):
                yield {"run_id": summary.run_id, "step": row["step"], "metric": metric, "value": value}
    # The last validation is part of the final evaluation. Without it every curve would stop before training does.
    if last is not None and summary.steps_done > last:
        ending = {"step": summary.steps_done, "metric": "validation_accuracy", "value": summary.validation_accuracy}
        yield {"run_id": summary.run_id, **ending}


def _item_rows(run_id: str, folder: Path) -> list[dict[str, Any]]:
    path = folder / "items.csv"
    with explained(path):
        items = parse(path.read_bytes(), path, KINDS["items"], ("split", "item_id", "correct", "truncated"))
    return items.assign(run_id=run_id).to_dict("records")


def _timing_row(run_id: str, folder: Path) -> dict[str, Any]:
    rows = _lines(folder / "timings.jsonl")
    sums = {name: sum(row.get(name) or 0.0 for row in rows) for name in ("step_s", *SECONDS)}
    peaks = {name: max((row[name] for row in rows if row.get(name)), default=None) for name in PEAKS}
    return {"run_id": run_id, "seconds": sums.pop("step_s") + sums["evaluation_s"], **sums, **peaks}


def tables_manifest(planned: Sequence[PlannedRun], runs_dir: str | Path) -> dict[str, Any]:
    """What the tables were made from: this machine and tree, and the commit, seed, seconds and memory of every finished run.

    A run is dirty if any of its starts was; None means not known. ``run_commits`` lists the commits of all starts. Python,
    packages, CPU and GPU stand once, as ``runs_python`` and so on, where all runs agree.
    """
    runs: dict[str, dict[str, Any]] = {}
    starts: dict[str, list[dict[str, Any]]] = {}
    for run_id, config in {run.config.run_id: run.config for run in planned}.items():
        folder = Path(runs_dir) / run_id
        if read_summary(folder) is None or not (folder / "manifest.json").exists():
            continue
        found = read_json(folder / "manifest.json", "a manifest")
        timing = _timing_row(run_id, folder)
        earlier = found.get("earlier_starts") or []
        starts[run_id] = [found, *earlier]
        runs[run_id] = {"seed": config.seed}
        origin = ("commit", "model_commit", "base_sha256", "task_version", "python", "packages", "cpu", "gpu", "finished")
        runs[run_id] |= {name: found.get(name) for name in origin}
        runs[run_id] |= {"dirty": _dirty(starts[run_id]), **({"earlier_starts": earlier} if earlier else {})}
        runs[run_id] |= {name: timing[name] for name in ("seconds", *PEAKS)}
    shared = {}
    for name in ("python", "packages", "cpu", "gpu"):
        values = [run[name] for run in runs.values()]
        if values and all(value == values[0] for value in values):
            shared[f"runs_{name}"] = values[0]
            for run in runs.values():
                del run[name]
    totals = {
        "made": now(),
        "run_commits": sorted({str(start.get("commit")) for of_run in starts.values() for start in of_run}),
        "runs_dirty": _dirty(runs.values()),
        **shared,
        "seeds": sorted({run["seed"] for run in runs.values()}),
        "seconds_of_all_runs": sum(run["seconds"] for run in runs.values()),
        **{name: max((run[name] for run in runs.values() if run[name]), default=None) for name in PEAKS},
    }
    return {**manifest(), **totals, "runs": dict(sorted(runs.items()))}


def _dirty(made: Iterable[Mapping[str, Any]]) -> bool | None:
    """True if one was made from a tree with uncommitted changes, None if it is not known of one, else False."""
    flags = [one.get("dirty") for one in made]
    return True if True in flags else None if None in flags else False
