"""Run directories to tidy tables and back: named columns, a schema version, the same bytes for the same runs.

runs.csv has a row for every planned run of every ablation, also of those that are missing (status pending) or failed, so that
nothing can be left out unseen. A missing value is empty, never 0. What varies from machine to machine is in timings.csv alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from replication.errors import UserError
from replication.runs import RunSummary, check_files, explained, manifest, now, read_failure, read_json, read_summary
from replication.statistics import best_rate
from replication.tables.csv_files import (
    KINDS,
    PEAKS,
    SECONDS,
    as_text,
    frame,
    read_csv,
    read_tables,
    run_columns,
    write_tables,
)

if TYPE_CHECKING:
    from replication.ablations import PlannedRun

__all__ = ["build_tables", "read_tables", "tables_manifest", "write_tables"]

HEADLINE = "full_vs_sparse"
#: Of these ablations curves.csv has the validation alone: every metric of every step of 600 runs would be 30 MB.
BRIEF = ("token_fraction", "lora_rank", "learning_rate")


def build_tables(planned: Sequence[PlannedRun], runs_dir: str | Path) -> dict[str, pd.DataFrame]:
    """The tables runs, curves, items, ablation_items and timings of a plan, from what lies under ``runs_dir``/<run_id>.

    items has the answers of the headline runs on the test items, ablation_items the right and wrong of those other runs that a
    comparison rests on: every setting of the token fraction, and of the rest what stands at the rate that validation chooses.

    Args:
        planned: ablation and config of each run; a config in several ablations gets a row in each.
        runs_dir: the folder of run directories; it may be empty or missing.

    Raises:
        UserError: if a file of a finished run is damaged.
    """
    runs_dir = Path(runs_dir)
    rows: list[dict[str, Any]] = []
    found: dict[str, RunSummary | None] = {}
    headline, whole = set(), set()
    for run in planned:
        run_id = run.config.run_id
        if run_id not in found:
            found[run_id] = read_summary(runs_dir / run_id)
        if run.ablation == HEADLINE:
            headline.add(run_id)
        if run.ablation not in BRIEF:
            whole.add(run_id)
        rows.append(_run_row(run.ablation, run.config, run_id, found[run_id], runs_dir))
    columns = run_columns(type(planned[0].config)) if planned else KINDS["runs"]
    finished = sorted(run_id for run_id, summary in found.items() if summary is not None)
    for run_id in finished:
        check_files(runs_dir / run_id)
    table = frame(rows, columns, ["ablation", "task", "method", "seed", "run_id"])
    compared = _compared(table) - headline
    curves = [row for run_id in finished for row in _curve_rows(found[run_id], runs_dir / run_id, brief=run_id not in whole)]
    items = {run_id: list(_item_rows(run_id, runs_dir / run_id)) for run_id in finished if run_id in headline | compared}
    timings = [_timing_row(run_id, runs_dir / run_id) for run_id in finished]
    return {
        "runs": table,
        "curves": frame(curves, KINDS["curves"], ["run_id", "step", "metric"]),
        "items": frame(_of(items, headline), KINDS["items"], ["run_id", "item_id"]),
        "ablation_items": frame(_of(items, compared), KINDS["ablation_items"], ["run_id", "item_id"]),
        "timings": frame(timings, KINDS["timings"], ["run_id"]),
    }


def _compared(runs: pd.DataFrame) -> set[str]:
    """Run ids of the ablations' ended runs that are compared item by item."""
    runs = runs[runs["status"].isin(["done", "diverged"])]
    found = set(runs.loc[runs["ablation"] == "token_fraction", "run_id"])
    tuned = runs[runs["ablation"].isin(["lora_rank", "learning_rate"])]
    for _, own in tuned.groupby([name for name in ("ablation", "task", "method", "lora_rank") if name in tuned], dropna=False):
        found |= set(own.loc[own["learning_rate"] == best_rate(own), "run_id"])
    return found


def _of(items: dict[str, list[dict[str, Any]]], runs: set[str]) -> list[dict[str, Any]]:
    return [row for run_id, rows in items.items() if run_id in runs for row in rows]


def _run_row(ablation: str, config: Any, run_id: str, summary: RunSummary | None, runs_dir: Path) -> dict[str, Any]:
    row = {name: as_text(value) for name, value in config.model_dump(mode="json").items()}
    # The path of a default `make all`, wherever this one is: the table must not depend on the place.
    out = f"results/local/{config.profile}/runs/{run_id}"
    row |= {"run_id": run_id, "ablation": ablation, "selector": config.selector, "command": config.command(out)}
    if summary is not None:
        return row | {name: value for name, value in summary.model_dump().items() if name != "run_id"}
    failure = read_failure(runs_dir / run_id)
    if failure is not None:
        return row | {"status": "failed", "reason": " ".join(str(failure["reason"]).split())}
    return row | {"status": "pending"}


def _lines(path: Path) -> list[dict[str, Any]]:
    with explained(path):
        data = path.read_bytes()
    try:
        rows = [json.loads(line) for line in data.splitlines()]
        if data and not data.endswith(b"\n") or not all(isinstance(row, dict) and "step" in row for row in rows):
            raise ValueError("a line is cut off, or is of no step")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): remove the folder {path.parent} and start again") from None
    return rows


def _curve_rows(summary: RunSummary, folder: Path, *, brief: bool) -> Iterable[dict[str, Any]]:
    """Every metric at every step (``brief``: of the validations), and the validation accuracy that training ended with."""
    last = None
    for row in _lines(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else ():
        for metric, value in row.items():
            if metric == "validation_accuracy":
                last = row["step"]
            if metric != "step" and (not brief or metric.startswith("validation_")):
                yield {"run_id": summary.run_id, "step": row["step"], "metric": metric, "value": value}
    # The last validation is part of the final evaluation. Without it every curve would stop before training does.
    if last is not None and summary.steps_done > last:
        ending = {"step": summary.steps_done, "metric": "validation_accuracy", "value": summary.validation_accuracy}
        yield {"run_id": summary.run_id, **ending}


def _item_rows(run_id: str, folder: Path) -> Iterable[dict[str, Any]]:
    for row in read_csv(folder / "items.csv", ("split", "item_id", "correct", "truncated")).to_dict("records"):
        if row["split"] == "test":
            parsed = int(row["parsed"]) if row.get("parsed") else None
            numbers = {"correct": int(row["correct"]), "truncated": int(row["truncated"]), "parsed": parsed}
            yield {"run_id": run_id, "item_id": row["item_id"], **numbers}


def _timing_row(run_id: str, folder: Path) -> dict[str, Any]:
    rows = _lines(folder / "timings.jsonl") if (folder / "timings.jsonl").exists() else []
    sums = {name: sum(row.get(name) or 0.0 for row in rows) for name in ("step_s", *SECONDS)}
    peaks = {name: max((row[name] for row in rows if row.get(name)), default=None) for name in PEAKS}
    return {"run_id": run_id, "seconds": sums.pop("step_s") + sums["evaluation_s"], **sums, **peaks}


def tables_manifest(planned: Sequence[PlannedRun], runs_dir: str | Path) -> dict[str, Any]:
    """What the tables were made from: this machine and tree, and the commit, seed, seconds and memory of every finished run.

    A run counts as dirty if any of its starts was, and ``run_commits`` are those of every start; None = not known. What all
    runs have in common of Python and packages stands once, as ``runs_python`` and ``runs_packages``.
    """
    runs: dict[str, dict[str, Any]] = {}
    starts: dict[str, list[dict[str, Any]]] = {}
    for run_id, config in {run.config.run_id: run.config for run in planned}.items():
        folder = Path(runs_dir) / run_id
        if read_summary(folder) is None or not (folder / "manifest.json").exists():
            continue
        found = read_json(folder / "manifest.json", "a manifest")
        found = found if isinstance(found, dict) else {}
        timing = _timing_row(run_id, folder)
        earlier = found.get("earlier_starts") or []
        starts[run_id] = [start for start in [found, *earlier] if isinstance(start, dict)]
        runs[run_id] = {"seed": config.seed, "config_sha256": hashlib.sha256(config.model_dump_json().encode()).hexdigest()}
        origin = ("commit", "model_commit", "base_sha256", "task_version", "python", "packages", "cpu", "gpu", "finished")
        runs[run_id] |= {name: found.get(name) for name in origin}
        runs[run_id] |= {"dirty": _dirty(starts[run_id]), **({"earlier_starts": earlier} if earlier else {})}
        runs[run_id] |= {name: timing[name] for name in ("seconds", *PEAKS)}
    shared = {}
    for name in ("python", "packages"):
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
