"""report.html, the page to open first: verdicts, figures, tuning, plan, ledger and provenance, from the tables alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from replication.names import CLAIMS, ROOT
from replication.report import readings, readings_ablations, readings_diagnostics, rows, summaries
from replication.report.figures import FIGURES
from replication.report.pages import data_uri, render
from replication.report.style import style
from replication.runs import atomic_write, read_json
from replication.statistics import Tables, verdicts
from replication.tables import build_tables, read_tables, tables_manifest, write_tables

#: Title, question and sentences of each figure, in the order of the page.
_FIGURE_TEXTS: dict[str, tuple[str, str, Callable[[Tables, str], list[str]]]] = {
    "full_vs_sparse": ("Full against sparse", "Does crediting fewer tokens cost accuracy, or gain it?", readings.headline),
    "learning_curves": ("Learning curves", "How fast does each method learn, and had it levelled off?", readings.learning_curves),
    "learning_rate": (
        "Learning rate", "Is a method's failure or success one of its learning rate?", readings_ablations.learning_rate,
    ),
    "token_fraction": (
        "Token fraction", "How much does accuracy depend on how many tokens are credited?", readings_ablations.token_fraction,
    ),
    "lora_rank": ("LoRA rank", "Where does the gap between sparse and full open or close?", readings_ablations.lora_rank),
    "cost": ("Cost of a training", "What does an accuracy cost in credited tokens?", readings.cost),
    "cost_to_reach": ("Cost to reach", "How many credited tokens until a given accuracy?", readings.cost_to_reach),
    "regularisation": ("Regularisation", "Do sparse updates drift less and overfit less?", readings_diagnostics.regularisation),
    "credit_vs_truth": ("Credit against the truth", "Does credit fall where it matters?", readings_diagnostics.credit_vs_truth),
    "worked_example": ("One group, token by token", "Which tokens does each method credit?", readings_diagnostics.worked_example),
    "gradient_snr": ("Signal and noise", "How much of a gradient is signal?", readings_diagnostics.gradient_snr),
    "price_of_accuracy": ("The price of an accuracy", "What does it take to get there?", readings_diagnostics.price_of_accuracy),
}  # fmt: skip


def update_tables(profile: str, results_dir: str | Path, *, variant: str = "default", seeds: int | None = None) -> Tables:
    """Build and write the tables of the whole plan from the run directories, with the verdicts; what was not run is pending.

    For notebooks that have just run a part of the plan.
    """
    from replication.ablations import plan

    planned, runs_dir = plan(profile, variant=variant, seeds=seeds), Path(results_dir) / "runs"
    tables = build_tables(planned, runs_dir)
    tables["verdicts"] = verdicts(CLAIMS, tables)
    settings = {"plan": variant, "seeds": seeds, "set": [], "svamp": None}
    write_tables(tables, results_dir, tables_manifest(planned, runs_dir) | {"profile": profile, "plan": settings})
    return read_tables(results_dir)


def find_tables(profile: str, results_dir: str | Path) -> tuple[Tables, Path | None]:
    """The tables of ``results_dir``, or else those committed under results/<profile>, or else none at all; and where they lie."""
    for folder in (Path(results_dir), ROOT / "results" / profile):
        if any(folder.glob("*.csv")):
            return read_tables(folder), folder
    return {}, None


def build(results_dir: str | Path, profile: str) -> Path:
    """Write verdicts.csv and report.html from the tables in ``results_dir``; returns the page's path.

    The page stands alone: figures are drawn from the tables and inlined, nothing is fetched.

    Raises:
        UserError: no tables, a damaged one, or a folder that cannot be written.
    """
    results_dir = Path(results_dir)
    tables = read_tables(results_dir)
    judged = verdicts(CLAIMS, tables)
    write_tables({"verdicts": judged}, results_dir)
    manifest = read_json(results_dir / "manifest.json", "a manifest")
    page = results_dir / "report.html"
    atomic_write(page, render("report.html", **_context(tables, judged, manifest, results_dir, profile)))
    return page


def _context(tables: Tables, judged: pd.DataFrame, manifest: Mapping[str, Any], folder: Path, profile: str) -> dict[str, Any]:
    runs = tables.get("runs", pd.DataFrame())
    runs = runs[runs["profile"] == profile] if len(runs) else runs
    pages = sorted(path.name for path in (folder / "notebooks").glob("*.html"))
    return {
        "profile": profile,
        "verdicts": rows.verdict_rows(judged),
        "summary": rows.summary(judged, profile),
        "figures": _figures(tables, profile),
        "headline": rows.headline(tables, profile),
        "svamp_split": readings.svamp_split(tables, profile),
        "prompts": summaries.prompt_table(tables, profile).to_dict("records"),
        "gains": rows.gains(tables, profile),
        "spread": rows.spread(tables, profile),
        "paired": rows.paired(tables, profile),
        "negative": rows.negative_results(judged),
        "power": readings.power(tables, profile),
        "tuning": rows.tuning(tables, profile),
        "plan": readings.plan_sentence(runs) if len(runs) else "Nothing was planned.",
        "plan_rows": summaries.plan_table(runs).to_dict("records") if len(runs) else [],
        "states": summaries.state_table(runs).to_dict("records") if len(runs) else [],
        "troubled": rows.troubled(runs),
        "deviations": rows.deviations(runs),
        "settings": rows.settings(runs),
        "not_run": rows.ledger()["not_run"],
        "provenance": rows.provenance(manifest),
        "packages": ", ".join(f"{name} {version}" for name, version in (manifest.get("packages") or {}).items()),
        "example": rows.example(runs),
        "pages": pages,
    }


def _figures(tables: Tables, profile: str) -> list[dict[str, Any]]:
    shown = []
    for name, draw in FIGURES.items():
        title, question, read = _FIGURE_TEXTS.get(name, (name.replace("_", " "), "", lambda tables, profile: []))
        figure, data = draw(tables), io.BytesIO()
        with style():
            figure.savefig(data, format="png", dpi=150, metadata={"Software": None})
        sentences = read(tables, profile)
        alternative = f"{title}. {' '.join(sentences)}"
        address = data_uri(data.getvalue(), "image/png")
        # In proportion to the figure's own width, so that the lettering of all of them is of one size.
        width = round(108 * figure.get_figwidth())
        texts = {"name": name, "title": title, "question": question, "alt": alternative, "sentences": sentences}
        shown.append({**texts, "src": address, "width": width})
    return shown
