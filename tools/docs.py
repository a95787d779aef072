"""The generated parts of the README and of docs/: verdicts, plan, rooms, cost, times and advice, put between markers.

python -m tools.docs            brings them up to date
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pandas as pd

from benchmarks import text as bench_text
from benchmarks.figures import read_tables as read_bench
from replication.ablations import plan
from replication.errors import UserError
from replication.names import HEADLINE, METHOD_LABELS, RESULTS, ROOT
from replication.report import EXHIBITS, advice_table, conclusions, interval, limits, short_answer
from replication.runs import atomic_write, read_json
from replication.tables import read_tables
from tools import api, predictions

COMMITTED = RESULTS / "nano"
#: Of a real model on a CPU (docs/models.md).
SMOLLM2 = RESULTS / "small-smollm2"
BENCH = RESULTS / "bench"
#: Top-level modules of the package by what they are for; those of a run in the order in which it goes through them.
MODULES = {
    "one run, in reading order": ("train", "groups", "checks", "critic", "objective", "evaluate", "training_state"),
    "the plans: which runs each comparison needs": ("ablations",),
    "the command line": ("__main__", "commands"),
    "used everywhere": ("base_files", "user_code", "names", "errors", "randomness", "console", "signals"),
}


def verdict_table(committed: Path = COMMITTED) -> str:
    """The report's opening sentences, a row for each claim of the lab, a line for those of other scales, the headline figure."""
    tables = read_tables(committed)
    judged = tables["verdicts"]
    nano = judged[judged["scale"] == "nano"]
    lines = [f"**{short_answer(judged, 'nano')}**", ""]
    lines += [f"{place}. {sentence}" for place, sentence in enumerate(conclusions(judged, tables, "nano"), 1)]
    if said := limits(judged, tables, "nano"):
        lines += ["", "**Limits.**", "", *(f"- {sentence}" for sentence in said)]
    lines += ["", "| claim in the nano lab | of the paper's | ours [95 % interval] | seeds | verdict |", "|---|---|---|---|---|"]
    for row in nano.to_dict("records"):
        seeds = "" if pd.isna(row["seeds"]) else f"{row['seeds']:.0f}"
        other = "" if pd.isna(row["counterpart"]) else row["counterpart"]
        unit = f" {row['unit']}"
        ours = interval(row["value"], row["low"], row["high"], unit)
        lines.append(f"| **{row['claim']}** {row['text']} | {other} | {ours} | {seeds} | {row['verdict']} |")
    for scale, own in judged[judged["scale"] != "nano"].groupby("scale", sort=False):
        counts = own["verdict"].value_counts()
        said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        lines += ["", f"The {len(own)} claims at the scale `{scale}` ({own['claim'].iloc[0]} to {own['claim'].iloc[-1]}): {said}."]
    runs = tables["runs"].drop_duplicates("run_id")
    done = int((runs["status"] != "pending").sum())
    share = f"All {done}" if done == len(runs) else f"Of the {len(runs)}"
    lines += ["", f"{share} runs of the full plan {'' if done == len(runs) else f'{done} '}are in these tables."]
    return "\n".join([*lines, "", "![Test accuracy of the base and the methods](results/nano/figures/full_vs_sparse.png)"])


def plan_size(profile: str = "nano") -> str:
    """How many runs and steps the plans of a profile have, and how long the committed runs took. Equal plans have one row."""
    lines = ["| plan | runs | optimizer steps |", "|---|---|---|"]
    command = "make all" if profile == "nano" else f"make {profile}"
    first = {" SEEDS=1 RATES=1": {"seeds": 1, "rates": 1}} if profile == "small" else {}
    above = None
    for words, options in {**first, "": {}, " PLAN=full": {"variant": "full"}}.items():
        configs = {run.config for run in plan(profile, **options)}
        if configs != above:
            lines.append(f"| `{command}{words}` | {len(configs)} | {sum(config.steps for config in configs):,} |")
        above = configs
    if profile == "nano":
        timings = read_tables(COMMITTED)["timings"].drop_duplicates("run_id").set_index("run_id")["seconds"]
        first = timings.reindex([config.run_id for config in {run.config for run in plan(profile)}])
        lines += ["", f"A committed run took {timings.mean():.0f} s on average (one thread of a shared machine: an upper bound)."]
        if first.notna().all():
            lines[-1] += f" The runs of `make all` took {first.sum() / 60:.0f} minutes on one thread; two cores need about half."
    return "\n".join(lines)


def rooms() -> str:
    """The modules of the package, and its folders with the first sentence of their docstring.

    Raises:
        UserError: a module of the package is in no row.
    """
    package = ROOT / "replication"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    if modules != (listed := {name for names in MODULES.values() for name in names}):
        raise UserError(f"MODULES of tools/docs.py and the package differ in {', '.join(sorted(modules ^ listed))}")
    lines = ["| in `replication/` | what is there |", "|---|---|"]
    lines += [f"| {', '.join(f'`{name}`' for name in names)} | {title} |" for title, names in MODULES.items()]
    lines += [f"| `{path.parent.name}/` | {_first_sentence(path)} |" for path in sorted(package.glob("*/__init__.py"))]
    return "\n".join([*lines, "| `profiles/` | smoke, nano, small, paper: the settings of each scale |"])


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    if not docstring:
        raise UserError(f"{path} has no docstring: say in its first line what the room holds")
    return docstring.splitlines()[0].rstrip(".")


def cost() -> str:
    """How many times faster than TRL an update and a step are, and the share of its memory."""
    tables = read_bench(BENCH)
    ratios = tables["ratios"]
    untied = ratios[ratios["work"].str.endswith("no ties")].assign(phase="update, no group tied")
    shown = pd.concat([bench_text.headline(ratios), untied]).sort_values(["threads", "method"], kind="stable")
    lines = ["| threads | method | part | times faster than TRL [quartiles] | aim |", "|---|---|---|---|---|"]
    for row in shown.itertuples():
        aim = f"{row.aim:g}{'' if row.ratio >= row.aim else ' (missed)'}"
        spread = f"{row.ratio:.1f} [{row.ratio_q1:.1f}, {row.ratio_q3:.1f}]"
        lines.append(f"| {row.threads} | {row.method} | {row.phase.replace('step', 'whole step')} | {spread} | {aim} |")
    packed = tables["memory"][tables["memory"]["implementation"] == "packed"]
    worst = packed.groupby("method")["share_of_trl_at_its_best"].max()
    shares = ", ".join(f"{METHOD_LABELS[method]} {share:.2f}" for method, share in worst.items())
    least = "as a share of TRL's better setting (checkpointing on or off). The worse of two test cases is shown"
    lines += ["", f"Peak memory of an update, {least}: {shares}.", "", *bench_text.in_trl(tables)]
    lines += ["", bench_text.least_gain(tables["scaling"])]
    lines += ["", "A run of the first nano lab (75 steps), scored densely or packed:", "", *bench_text.whole_runs(tables)]
    lines += ["", "![Speed of an update and of a step as a ratio to TRL](../results/bench/figures/ratios.png)"]
    return "\n".join(lines)


def real_weights() -> str:
    """What the methods made of SmolLM2-135M on problems of one step: accuracy, gain, tokens in the loss, hardware."""
    tables = read_tables(SMOLLM2)
    made = read_json(SMOLLM2 / "manifest.json", "a manifest")
    lines = ["| | seeds | test accuracy, % | gain, points | sampled, % | tokens in the loss, % of untied groups |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in EXHIBITS[HEADLINE].tabulate(tables, "small").itertuples():
        accuracy = interval(row.accuracy, row.accuracy_low, row.accuracy_high, "")
        gain = interval(row.gain, row.gain_low, row.gain_high, "") if row.method != "base" else ""
        kept = "" if pd.isna(row.kept_fraction) else f"{row.kept_fraction:.1f}"
        lines.append(f"| {METHOD_LABELS[row.method]} | {row.seeds} | {accuracy} | {gain} | {row.sampled_accuracy:.1f} | {kept} |")
    runs = tables["runs"][tables["runs"]["method"] != "base"].drop_duplicates("run_id")
    minutes = tables["timings"].set_index("run_id")["seconds"].reindex(runs["run_id"]) / 60
    over = "items at one seed" if runs["seed"].nunique() == 1 else "seeds and items"
    lines += ["", f"{runs['n_items'].max():.0f} test items, greedy unless said; intervals over {over}. A run "]
    lines[-1] += f"of {runs['steps'].max():.0f} steps took {minutes.min():.0f} to {minutes.max():.0f} minutes on one thread "
    lines[-1] += f"({made['runs_cpu']}), evaluation included."
    return "\n".join(lines)


def notebook_times() -> str:
    """Seconds that each notebook took when the committed pages were made, in reading order; the trained runs were there already."""
    lines = ["| notebook | seconds |", "|---|---|"]
    seconds = pd.read_csv(COMMITTED / "notebooks" / "seconds.csv").set_index("notebook")["seconds"].sort_index()
    lines += [f"| `{name}` | {took:.0f} |" for name, took in seconds.items() if not name.endswith("_solutions")]
    lines += ["", "Measured with the runs of the plan already trained. `01` to `04` also train short runs of 40 steps, once."]
    return "\n".join(lines)


def advice() -> str:
    """A row for each question of which setting to start with, from the tables of the nano lab."""
    rows = advice_table(read_tables(COMMITTED), "nano")
    lines = ["| question | start with | evidence |", "|---|---|---|"]
    lines += [f"| {row.question} | {row.start_with} | {row.evidence} |" for row in rows.itertuples()]
    return "\n".join(lines)


#: file -> name of the block -> what makes it.
BLOCKS = {
    "README.md": {"plan": plan_size, "verdicts": verdict_table, "rooms": rooms},
    "docs/api.md": {"api": api.page},
    "docs/update-cost.md": {"cost": cost},
    "docs/nano-lab.md": {"predictions": predictions.predictions},
    "docs/paper-scale.md": {"paper-plan": lambda: plan_size("paper")},
    "docs/your-gpu.md": {"small-plan": lambda: plan_size("small")},
    "docs/models.md": {"real-weights": real_weights},
    "docs/teaching.md": {"notebook-times": notebook_times},
    "docs/which-setting.md": {"advice": advice},
}


def with_block(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the markers of a block.

    Raises:
        UserError: the markers are not there exactly once, in order.
    """
    begin, end = f"<!-- {name}: begin (generated by python -m tools.docs) -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"the markers of block {name} are lost: put back {begin!r} and {end!r}")
    return text[: text.index(begin) + len(begin)] + f"\n{content}\n" + text[text.index(end) :]


def update(root: Path = ROOT) -> list[str]:
    """Bring every block up to date; returns the files that changed."""
    changed = []
    for name, blocks in BLOCKS.items():
        path = root / name
        text = new = path.read_text("utf-8")
        for label, make in blocks.items():
            new = with_block(new, label, make())
        if new != text:
            atomic_write(path, new)
            changed.append(name)
    return changed


if __name__ == "__main__":
    try:
        print(", ".join(update()) or "up to date")
    except UserError as error:
        sys.exit(f"error: {error}")
