"""The parts of the README that are generated: verdicts, plan, cost and file tree, put between markers.

`python -m replication.readme` brings them up to date.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from replication.errors import UserError
from replication.names import ROOT
from replication.report import readings_ablations
from replication.report.page import CLAIMS
from replication.report.rows import verdict_rows
from replication.runs import atomic_write, explained, read_json
from replication.statistics import verdicts
from replication.tables import read_tables

README = ROOT / "README.md"
COMMITTED = ROOT / "results" / "nano"
BENCH = ROOT / "results" / "bench"
SHAPE = ROOT / "data" / "qwen2-1.5b-shape"
TRIED = ROOT / "results" / "safety" / "tried.csv"
BLOCKS = ("verdicts", "plan", "tried", "paper", "cost", "tree")
#: The package in the order of the data's way, then what serves it; files not named here follow by name.
_ORDER = (
    "config.py", "profiles/", "ablations.py", "tasks/", "models/", "rollout.py", "groups.py", "algorithms/", "packing.py",
    "scoring.py", "objective.py", "ledger.py", "memory.py", "train.py", "evaluate.py", "records.py", "run_summary.py",
    "checkpoints.py",
    "sweep.py", "worker.py",
    "local_engine.py", "ray_engine.py",
    "tables.py", "table_files.py", "intervals.py", "claims.py", "evidence.py", "estimates.py", "verdicts.py", "statistics.py",
    "summaries.py", "contrasts.py",
    "readings.py", "readings_ablations.py", "plotting.py", "figures.py", "figures_ablations.py", "figures_teaching.py",
    "figures_trie.py", "walkthrough.py", "exercises.py", "interactive.py", "pages.py", "report.py", "report_rows.py", "templates/",
    "readme.py", "display.py", "notebooks.py", "publish.py", "__main__.py", "commands.py",
)  # fmt: skip
_TOP = ("Makefile", "README.md", "replication/", "notebooks/", "data/", "results/", "tests/", "benchmarks/", ".ci/")
#: Files that hold no docstring, and folders that are not opened.
_GLOSSES = {
    "Makefile": "every command, by name; `make` lists them",
    "README.md": "this page",
    "LICENSE": "MIT",
    "CITATION.cff": "how to cite this and the paper",
    "environment.yml": "the pins for conda users",
    "pyproject.toml": "packages, pinned; settings of ruff and pytest",
    ".gitignore": "what git leaves out",
    ".ci/run": "what must hold before anything is merged",
    "benchmarks/README.md": "what is measured, and how",
    "data/README.md": "sources, licences, checksums",
    "data/claims.yaml": "the claims and the rule each is judged by",
    "data/deviations.yaml": "every choice that the paper leaves open to us",
    "data/negative_results.yaml": "what did not come out as thought, dated",
    "data/qwen2-1.5b-shape/": "sizes of Qwen2-1.5B without weights: what its memory is predicted from",
    "data/nano-base/": "the base model: weights, tokenizer, card, measurements",
    "results/nano/": "tables, figures, report and notebooks of our own run",
    "results/safety/": "what fuzzing and soaking tried",
    "results/bench/": "cost of a step beside TRL: tables, figures, summary",
    "replication/profiles/smoke.yaml": "seconds: every path once",
    "replication/profiles/nano.yaml": "minutes on a CPU: the nano lab",
    "replication/profiles/paper.yaml": "hours on a GPU: the paper's scale",
    "replication/templates/notebook.html": "page of an executed notebook",
    "replication/templates/page.html": "frame of every page",
    "replication/templates/report.html": "the report's page",
    "replication/templates/style.css": "how pages look",
    "replication/models/__init__.py": "marks the folder as a package",
}
_LONGEST = 92


def verdict_block(committed: Path = COMMITTED) -> str:
    """The verdict table of the committed results in Markdown, and the headline figure; without results every claim is not run."""
    tables = read_tables(committed) if any(committed.glob("*.csv")) else {}
    judged = tables.get("verdicts")
    judged = verdicts(CLAIMS, {}) if judged is None else judged
    lines = ["| claim | the paper's | ours [95 % interval] | seeds | items | verdict |", "|---|---|---|---|---|---|"]
    for row in verdict_rows(judged):
        claim = f"**{row['claim']}** {row['text']}" + (" [P]" if row["mark"] == "P" else "")
        cells = [claim, row["paper"], row["ours"], row["seeds"], row["items"], row["verdict"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    said = readings_ablations.token_fraction(tables, "nano")
    shown = {
        "full_vs_sparse": ("Test accuracy of the base and the three methods", []),
        "token_fraction": ("Test accuracy against the share of tokens in the loss", said),
    }
    for name, (alternative, sentences) in shown.items():
        figure = committed / "figures" / f"{name}.png"
        if figure.exists():
            lines += ["", f"![{alternative}]({figure.relative_to(committed.parents[1]).as_posix()})"]
            # Both ends of the range, and what each way to choose tokens gains; the accuracies themselves are in the figure.
            lines += [""] * bool(sentences) + [f"- {text}" for text in sentences if "by which" not in text]
    return "\n".join(lines)


def plan_block(committed: Path = COMMITTED) -> str:
    """How many runs of how many steps `make all` is, by default and with PLAN=full, and how long the latter should train.

    The time is the mean of the committed runs, times the runs, over two cores.
    """
    from replication.ablations import plan
    from replication.report.readings import plan_sentence
    from replication.report.summaries import plan_frame

    frames = {variant: plan_frame(plan("nano", variant=variant)) for variant in ("default", "full")}
    text = f"{plan_sentence(frames['default'])}\n\nWith `PLAN=full`: {plan_sentence(frames['full'])}"
    if (committed / "timings.csv").exists():
        seconds = read_tables(committed)["timings"]["seconds"].mean()
        whole, small = (frames[variant]["run_id"].nunique() * seconds / 2 / 60 for variant in ("full", "default"))
        made = (read_json(committed / "manifest.json", "a manifest").get("plan") or {}).get("plan", "default")
        text += f" The committed results are of `PLAN={made}`: {seconds:.1f} s a run on average, at which training takes about "
        text += f"{whole:.0f} minutes on 2 cores, and {small:.0f} by default."
    return text


def tried_block(path: Path = TRIED) -> str:
    """How many inputs the fuzzing tried and what a soak went through, from the table that both append to."""
    if not path.exists():
        return "not run"
    tried = pd.read_csv(path)
    sentences = []
    fuzzed = tried[tried["what"] == "fuzz"]
    if len(fuzzed):
        counts = fuzzed.groupby("name", sort=False)["count"].sum()
        broke = int(fuzzed["failed"].sum())
        parts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items())
        sentences.append(f"Inputs tried by coverage-guided fuzzing: {parts}; {broke or 'none'} broke a promise.")
    for _, own in tried[tried["what"] == "soak"].groupby("made"):
        counts = own.set_index("name")["count"]
        parts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())
        lost = "something was lost or grew" if own["failed"].any() else "nothing lost, nothing grew"
        sentences.append(f"Soaked for {own['seconds'].iloc[0] / 60:.0f} minutes: {parts}; {lost}.")
    commits = ", ".join(sorted({str(commit)[:7] for commit in tried["commit"]}))
    return " ".join(sentences) + f" (At commit {commits}.)"


def paper_block(shape: Path = SHAPE) -> str:
    """What `make paper` is and the GPU memory that it is predicted to need, from the sizes of the model alone."""
    from replication.forecast import predicted_peak

    from replication.ablations import plan
    from replication.config import load_profile
    from replication.report.readings import plan_sentence
    from replication.report.summaries import plan_frame

    planned = plan("paper")
    ranks = sorted({run.config.lora_rank for run in planned if run.config.method != "base"})
    own = load_profile("paper", task="multiplication", method="grpo").lora_rank
    rows = [(f"rank {rank}" + " (the profile's)" * (rank == own), {"lora_rank": rank}) for rank in ranks]
    rows.append((f"rank {own}, `activation_checkpointing=true`", {"activation_checkpointing": True}))
    lines = [plan_sentence(plan_frame(planned)), ""]
    lines += ["| GiB, predicted | weights and optimizer | update | rollout | in all, with context and fragmentation |"]
    lines += ["|---|---|---|---|---|"]
    for name, changes in rows:
        # The task decides nothing here, since the profile limits the completions.
        peak = predicted_peak(load_profile("paper", task="multiplication", method="grpo", model=str(shape), **changes))
        parts = (peak.resident, peak.update, peak.rollout, peak.total)
        lines.append(f"| {name} | " + " | ".join(f"{part / 2**30:.1f}" for part in parts) + " |")
    return "\n".join(lines)


def cost_block(folder: Path = BENCH) -> str:
    """How many times faster than TRL an update and a step are, and the share of its memory; what was not measured is not run."""
    from benchmarks.figures import read_tables as read_bench
    from benchmarks.text import headline, least_gain, whole_runs

    tables = read_bench(folder)
    if "ratios" not in tables:
        return "not run"
    ratios = tables["ratios"]
    untied = ratios[ratios["work"].str.endswith("no ties")].assign(phase="update, no group tied")
    shown = pd.concat([headline(ratios), untied])
    lines = ["| threads | method | part | times faster than TRL [quartiles] | aim |", "|---|---|---|---|---|"]
    for row in shown.sort_values(["threads", "method"], kind="stable").itertuples():
        aim = f"{row.aim:g}{'' if row.ratio >= row.aim else ' (missed)'}"
        spread = f"{row.ratio:.1f} [{row.ratio_q1:.1f}, {row.ratio_q3:.1f}]"
        lines.append(f"| {row.threads} | {row.method} | {row.phase.replace('step', 'whole step')} | {spread} | {aim} |")
    if "memory" in tables:
        packed = tables["memory"][tables["memory"]["implementation"] == "packed"]
        worst = packed.groupby("method")["share_of_trl_at_its_best"].max()
        lines += ["", "Peak memory of an update, as a share of TRL's at its best: "
                  + ", ".join(f"{method} {share:.2f}" for method, share in worst.items()) + "."]  # fmt: skip
    if "scaling" in tables:
        lines += ["", "Completions that part after some 5 tokens, in groups without ties, leave little to share (times faster "
                  "than TRL). " + least_gain(tables["scaling"])]  # fmt: skip
    if "dense_vs_packed" in tables:
        lines += ["", "A run of `make all`, its groups scored densely or packed:", "", *whole_runs(tables)]
    figure = folder / "figures" / "ratios.png"
    if figure.exists():
        lines += ["", f"![Speed of an update and of a step as a ratio to TRL]({figure.relative_to(folder.parents[1]).as_posix()})"]
    return "\n".join(lines)


def tracked_files() -> list[str]:
    """What git knows of, and new files that it does not ignore.

    Raises:
        UserError: this is no git clone.
    """
    words = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{ROOT} is no git clone, so the file tree cannot be made: {done.stderr.strip()}")
    return sorted({line for line in done.stdout.splitlines() if (ROOT / line).exists()})


def tree_block(files: Sequence[str] | None = None) -> str:
    """A line per file, with its gloss: the first words of its docstring, or its entry in this module.

    Raises:
        UserError: a file has neither.
    """
    entries = sorted({_entry(path) for path in (tracked_files() if files is None else files)}, key=_place)
    lines, seen = [], set()
    for entry in entries:
        parts = entry.rstrip("/").split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in seen:
                seen.add(folder)
                lines.append(f"{'  ' * (depth - 1)}{parts[depth - 1]}/")
        name = "  " * (len(parts) - 1) + parts[-1] + ("/" if entry.endswith("/") else "")
        lines.append(f"{name:<30} {_gloss(entry)}")
    return "\n".join(["```text", *lines, "```"])


def listed_files(tree: str) -> list[str]:
    """The paths that a tree block names, folders that are not opened with their slash."""
    found, stack = [], []
    for line in tree.splitlines():
        if line.startswith("```") or not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name, *gloss = line.split()
        stack = [*stack[:depth], name.rstrip("/")]
        if gloss:
            found.append("/".join(stack) + ("/" if name.endswith("/") else ""))
    return found


def _entry(path: str) -> str:
    return next((folder for folder in _GLOSSES if folder.endswith("/") and path.startswith(folder)), path)


def _place(entry: str) -> tuple:
    top = next((number for number, name in enumerate(_TOP) if entry.startswith(name)), len(_TOP))
    inside = entry.removeprefix("replication/")
    place = len(_ORDER)
    if inside != entry:
        place = next((number for number, name in enumerate(_ORDER) if inside.startswith(name)), len(_ORDER))
    return top, place, entry


def _gloss(entry: str) -> str:
    if entry in _GLOSSES:
        return _GLOSSES[entry]
    path = ROOT / entry
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    elif path.suffix == ".ipynb":
        from replication.notebooks import first_heading

        text = first_heading(path)
    else:
        text = None
    if not text:
        raise UserError(
            f"{entry} has no gloss for the file tree: give it a docstring, or an entry in replication/readme.py"
        )
    first = re.split(r"(?<=[.?])\s(?=[A-Z])(?<!et al\.\s)", " ".join(text.split()), maxsplit=1)[0].rstrip(".")
    if len(first) <= _LONGEST:
        return first
    # At the last clause that fits, if that says something; else between two words.
    ends = [found.start() for found in re.finditer(r"[:;,(]\s|\s\(", first[:_LONGEST])]
    return first[: ends[-1]].strip() if ends and ends[-1] > 20 else first[:_LONGEST].rsplit(" ", 1)[0] + " …"


def with_block(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the markers of a block.

    Raises:
        UserError: the markers are not there exactly once, in order.
    """
    begin, end = f"<!-- {name}: begin (generated by python -m replication.readme) -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"the README has lost the markers of its block {name}: put back {begin!r} and {end!r}")
    return text[: text.index(begin) + len(begin)] + f"\n{content}\n" + text[text.index(end) :]


def block(text: str, name: str) -> str:
    """What stands between the markers of a block."""
    found = re.search(rf"<!-- {name}: begin [^>]*-->\n(.*?)\n<!-- {name}: end -->", text, re.S)
    if not found:
        raise UserError(f"the README has lost the markers of its block {name}")
    return found.group(1)


def write_readme(readme: Path = README, committed: Path = COMMITTED) -> bool:
    """Bring the generated blocks of the README up to date; returns whether anything changed."""
    with explained(readme):
        text = readme.read_text("utf-8")
    new = text
    for name, content in zip(
        BLOCKS, (verdict_block(committed), plan_block(), tried_block(), paper_block(), cost_block(), tree_block()), strict=True
    ):
        new = with_block(new, name, content)
    if new != text:
        atomic_write(readme, new)
    return new != text


if __name__ == "__main__":
    try:
        print("changed" if write_readme() else "up to date")
    except UserError as error:
        sys.exit(f"error: {error}")
