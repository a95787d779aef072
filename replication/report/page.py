"""report.html, the page to open first: conclusions, verdicts, exhibits, and the folded rest, from the tables alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from replication.names import CLAIMS, RESULTS
from replication.report import appendix, plan
from replication.report.advice import MARGIN, advice_table
from replication.report.exhibits import EXHIBITS, save_figures
from replication.report.findings import conclusions, limits, negative_results, power, short_answer, verdict_table
from replication.report.html import render
from replication.report.wording import listing, own_reward, shown_table
from replication.runs import atomic_write, read_json
from replication.statistics import Tables, seed_spread, table, verdicts
from replication.tables import build_tables, read_tables, tables_manifest, write_tables

if TYPE_CHECKING:
    from replication.ablations import PlannedRun


_ADVICE = (
    f"The best choice has the highest mean test accuracy. Another is as good if the 95 % interval of its paired difference to the "
    f"best lies above -{MARGIN:g} points. Start with the cheapest of these, if it saves at least a tenth "
    "(docs/which-setting.md has the limits)."
)
_SPREAD = (
    "In percent: the mean accuracy with the 95 % interval over the choice of test items, and how much the accuracy varies with the "
    "training seed (sd, lowest and highest seed)."
)
_GAINS = (
    "The gain over the base on the test items in points, split into producing a parsable answer at all (it ends by itself and "
    "holds a number) and answering correctly."
)
_PROMPTS = (
    "The untrained base under each template, greedy on the validation split, in percent with Wilson 95 % intervals. A template "
    "that the base does not understand makes any later gain look large."
)
_TROUBLED = "A diverged run counts in its method's mean, with the parameters of its last validation."
_DEVIATIONS = (
    "Every choice that the text at hand leaves open [R], and where the nano lab stands in for the paper's setting [nano]. None of "
    "them is the paper's word."
)
_SETTINGS = (
    "[P] stated in the paper's abstract, [S] in second-hand descriptions of its method section, [R] our reconstruction; without a "
    "mark it does not concern the paper."
)


def _claims() -> Path | list[Any]:
    """The claims of the repository; a package installed without it judges none."""
    return CLAIMS if CLAIMS.exists() else []


def rebuild_tables(planned: Sequence[PlannedRun], results_dir: str | Path, notes: Mapping[str, Any]) -> None:
    """Write the tables of a whole plan from the run directories, with the verdicts; what was not run is pending.

    Args:
        notes: further entries of the manifest: the profile, and what the plan was made with.
    """
    runs_dir = Path(results_dir) / "runs"
    tables = build_tables(planned, runs_dir)
    tables["verdicts"] = verdicts(_claims(), tables)
    write_tables(tables, results_dir, {**tables_manifest(planned, runs_dir), **notes})


def update_tables(profile: str, results_dir: str | Path, *, variant: str = "default", seeds: int | None = None) -> Tables:
    """``rebuild_tables`` of a profile's plan, read back: for notebooks that have just run a part of it."""
    from replication.ablations import plan as plan_of

    notes = {"profile": profile, "plan": {"plan": variant, "seeds": seeds}}
    rebuild_tables(plan_of(profile, variant=variant, seeds=seeds), results_dir, notes)
    return read_tables(results_dir)


def find_tables(profile: str, results_dir: str | Path) -> tuple[Tables, Path | None]:
    """The tables of ``results_dir``, or else those committed under results/<profile>, or else none at all; and where they lie."""
    for folder in (Path(results_dir), RESULTS / profile):
        if any(folder.glob("runs.csv*")):  # `make prompts` and `diagnose` write others before anything is trained
            return read_tables(folder), folder
    return {}, None


def build(results_dir: str | Path, profile: str) -> Path:
    """Write verdicts.csv, the figures and report.html from the tables in ``results_dir``; returns the page's path.

    The page refers to figures/<name>.png beside it and to nothing else.

    Raises:
        UserError: no tables, a damaged one, or a folder that cannot be written.
    """
    results_dir = Path(results_dir)
    tables = read_tables(results_dir)
    judged = verdicts(_claims(), tables)
    write_tables({"verdicts": judged}, results_dir)
    exhibits = [exhibit.show(tables, profile) for exhibit in EXHIBITS.values()]
    shown = [one for one in exhibits if len(one.table)]
    save_figures(shown, results_dir / "figures")
    manifest = read_json(results_dir / "manifest.json", "a manifest")
    values = _context(tables, judged, manifest, results_dir, profile)
    values["answer"] = short_answer(judged, profile)
    values["conclusions"] = conclusions(judged, tables, profile, exhibits[0].table)
    values["limits"] = limits(judged, tables, profile)
    values["exhibits"] = [one.html(f"figures/{one.name}.png") for one in shown]
    values["without_runs"] = listing([one.title for one in exhibits if one not in shown])
    page = results_dir / "report.html"
    atomic_write(page, render("report.html", **values))
    return page


def _context(tables: Tables, judged: pd.DataFrame, manifest: Mapping[str, Any], folder: Path, profile: str) -> dict[str, Any]:
    runs = table(tables, "runs")
    runs = runs[runs["profile"] == profile]
    rewards = own_reward(tables, profile)
    folded = _folded(tables, runs, profile)
    done = runs[runs["status"] == "done"]
    return {
        "profile": profile,
        "own_reward": listing(sorted(set(runs["reward"].dropna()))) if rewards else "",
        "verdicts": verdict_table(judged),
        "power": power(tables, profile),
        "negative": negative_results(judged) if profile == "nano" else [],
        "models": listing(sorted({str(model).rsplit("/", 1)[-1] for model in runs["model"].dropna()})),
        "not_run": appendix.ledger()["not_run"],
        "folded": [(title, text, shown_table(one, rewards)) for title, text, one in folded if len(one)],
        "plan": plan.plan_sentence(runs) if len(runs) else "Nothing was planned.",
        "provenance": appendix.provenance(manifest),
        "example": str(done.iloc[0]["command"]) if len(done) else "",
        "pages": sorted(path.name for path in (folder / "notebooks").glob("*.html")),
    }


def _folded(tables: Tables, runs: pd.DataFrame, profile: str) -> list[tuple[str, str, pd.DataFrame]]:
    """Title, explanation and numbers of the tables that a click unfolds."""
    spread = seed_spread(tables, profile)
    # A field that is newer than these tables has no value in them, which is not the same as unset.
    written = runs[runs.columns.intersection(tables.get("runs", runs).columns)]
    spread = spread.rename(columns={"items_low": "mean_low", "items_high": "mean_high"})
    fractions = ["mean", "seed_sd", "seed_min", "seed_max", "mean_low", "mean_high"]
    return [
        ("Which setting to start with", _ADVICE, advice_table(tables, profile)),
        ("Two kinds of uncertainty", _SPREAD, spread.assign(**{name: 100 * spread[name] for name in fractions})),
        ("A parsable answer, or a right one?", _GAINS, appendix.gain_table(tables, profile)),
        ("Prompt templates", _PROMPTS, appendix.prompt_table(tables, profile)),
        ("Runs that did not simply end", _TROUBLED, appendix.troubled_table(runs)),
        ("How the plan went", "Distinct runs of each ablation.", plan.state_table(runs)),
        ("The plan in full", "", plan.plan_table(runs)),
        ("Deviations ledger", _DEVIATIONS, appendix.deviation_table(written)),
        ("Every setting, with its source", _SETTINGS, appendix.setting_table(written)),
    ]
