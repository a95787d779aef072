"""The table of the notebooks in reading order: the question of each, its exercises, and how long it took."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML
from markupsafe import Markup

from replication.names import RESULTS
from replication.notebooks.display import show_table
from replication.notebooks.parameters_cell import FOLDER, notebook_names
from replication.runs import atomic_write, read_json


def reading_order(profile: str, results_dir: str | Path, folder: Path = FOLDER) -> HTML:
    """The notebooks that ask a question: the question, the number of exercises, the seconds of the last run.

    Seconds are those of ``results_dir``, otherwise those committed for the profile; empty where nobody has run it.
    """
    seconds = read_seconds(RESULTS / profile / "notebooks") | read_seconds(Path(results_dir) / "notebooks")
    rows = []
    for name in notebook_names(folder):
        cells = read_json(folder / f"{name}.ipynb", "a notebook")["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        found = re.search(r"\*\*Question\.\*\* (.+?)(?:\n\n|$)", "\n\n".join(texts), re.S)
        if found:
            exercises = sum(bool(re.match(r"\*\*\d+\.\*\* ", text)) for text in texts)
            link = Markup('<a href="{0}.ipynb">{0}</a>').format(name)
            rows.append((link, re.sub("[*_`]", "", " ".join(found[1].split())), exercises or None, seconds.get(name)))
    columns = ["notebook", "question", "exercises", "seconds"]
    # dtype object: a column of strings would turn the links into plain text.
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    return show_table(frame.astype({"exercises": "Int64", "seconds": "Int64"}))


def note_seconds(folder: Path, name: str, seconds: float) -> None:
    """Into <folder>/seconds.csv: how long a notebook took on this machine; no other file there differs between machines."""
    table = pd.DataFrame((read_seconds(folder) | {name: round(seconds)}).items(), columns=["notebook", "seconds"])
    atomic_write(folder / "seconds.csv", table.to_csv(index=False))


def read_seconds(folder: str | Path) -> dict[str, int]:
    """Seconds of each notebook from <folder>/seconds.csv; none if it is not there or cannot be read."""
    try:
        frame = pd.read_csv(Path(folder) / "seconds.csv")
        return dict(zip(frame["notebook"].astype(str), frame["seconds"].astype(int), strict=True))
    except (OSError, ValueError, KeyError):
        return {}


def title(notebook: Any, otherwise: str) -> str:
    """The first heading of a notebook as plain text, or ``otherwise`` if it has none."""
    for cell in notebook["cells"]:
        found = re.search(r"^# +(.+)$", "".join(cell["source"]), re.M) if cell["cell_type"] == "markdown" else None
        if found:
            return re.sub(r"[`*$]", "", found.group(1)).strip()
    return otherwise
