"""Copy a reader's results over the committed ones, if they are evidence."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from replication.errors import UserError
from replication.names import ENDED
from replication.report.exhibits import EXHIBITS
from replication.runs import atomic_write, dirty, explained, make_folder, read_json
from replication.statistics import Tables, table
from replication.tables import read_tables
from replication.tasks import MADE_UP

#: What is committed of a results folder: never run directories, never executed notebooks, only their pages.
_PUBLISHED = ("*.csv", "*.csv.gz", "manifest.json", "report.html", "figures/*.png", "figures/*.svg", "notebooks/*.html")
_PUBLISHED += ("notebooks/seconds.csv",)


def publish(profile: str, source: Path, target: Path) -> list[Path]:
    """Copy tables, manifest, figures and pages from ``source`` over ``target``; what is no longer made is removed there.

    Raises:
        UserError: for smoke results or a dry run, planned runs that are not finished, or a tree (now, or when a run was made)
            with uncommitted changes; ``target`` is then untouched.
    """
    tables = read_tables(source)
    manifest = read_json(source / "manifest.json", "a manifest")
    runs = table(tables, "runs")
    if set(runs["profile"]) != {profile}:
        raise UserError(f"{source} does not hold runs of profile {profile} alone: name another folder with --out")
    if profile == "smoke" or _is_dry_run(runs, tables):
        raise UserError("smoke results and dry runs are no evidence and are never published: run profile nano, small or paper")
    unfinished = runs[~runs["status"].isin(ENDED)]
    if len(unfinished):
        raise UserError(f"{len(unfinished)} planned runs of {source} are not finished: run `make all PROFILE={profile}` first")
    if dirty() is not False:
        raise UserError("the working tree has changes that are not committed (or is no git clone): commit them first")
    if not manifest.get("runs_dirty") is manifest.get("dirty") is False:
        raise UserError(
            f"runs or tables of {source} were made, or started, from a tree with uncommitted changes or outside git: "
            "make them again from a commit"
        )
    files = {path.relative_to(source): path for pattern in _PUBLISHED for path in sorted(source.glob(pattern))}
    files = {name: path for name, path in files.items() if name.parts[0] != "figures" or name.stem in EXHIBITS}
    if Path("report.html") not in files or not any(name.parts[0] == "figures" for name in files):
        raise UserError(f"{source} has no report or no figures: run `make report PROFILE={profile}` first")
    for relative, path in files.items():
        make_folder((target / relative).parent)
        with explained(path):
            atomic_write(target / relative, path.read_bytes())
    for pattern in _PUBLISHED:
        for path in target.glob(pattern):
            if path.relative_to(target) not in files:
                with explained(path):
                    path.unlink()
    return [target / relative for relative in files]


def _is_dry_run(runs: pd.DataFrame, tables: Tables) -> bool:
    """Whether a model is the random one of a dry run, as its config says, or the items are made up, as their ids say."""
    configs = [Path(model) / "config.json" for model in runs["model"].dropna().unique()]
    dry = any(path.exists() and read_json(path, "a config").get("dry_run") for path in configs)
    return dry or table(tables, "items")["item_id"].str.startswith(MADE_UP).any()
