"""Remove from an executed notebook what differs between two runs or two machines: times, progress bars, absolute paths."""

from __future__ import annotations

import copy
import os
import re
import sys
from pathlib import Path
from typing import Any

from replication.names import ROOT

#: A widget of a live front end.
WIDGET = "application/vnd.jupyter.widget-view+json"


def cleaned(notebook: Any) -> Any:
    """A copy of an executed notebook that is the same wherever and whenever the same cells print the same results."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in ("tags", "jupyter")}
        if cell.cell_type != "code":
            continue
        # stderr holds progress lines and warnings, with seconds and paths in them.
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr" and not _is_progress(output)]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):  # a picture with controls: a page has no kernel, so the picture is enough
                output.data.pop(WIDGET, None)
            _clean_texts(output)
    return notebook


def _is_progress(output: Any) -> bool:
    """Whether an output is a progress bar, which tqdm and transformers show as a widget."""
    data = output.get("data", {})
    return WIDGET in data and re.search(r"\d+%\|", data.get("text/plain", "")) is not None


def _clean_texts(node: Any) -> None:
    for key, value in list(node.items()) if isinstance(node, dict) else ():
        if isinstance(value, str) and not key.startswith("image/png"):
            node[key] = without_paths(value)
        elif isinstance(value, list):
            node[key] = [without_paths(item) if isinstance(item, str) else item for item in value]
        else:
            _clean_texts(value)


def without_paths(text: str) -> str:
    """``text`` with the repository's folder cut off paths, and those of the interpreter and the user shortened."""
    for folder, short in ((f"{ROOT}{os.sep}", ""), (str(ROOT), "."), (sys.prefix, "<python>"), (str(Path.home()), "~")):
        if len(folder) > 2:
            text = text.replace(folder, short)
    return text


def one_line(text: str, longest: int = 300) -> str:
    """``text`` without paths on one line, cut after ``longest`` characters."""
    line = " ".join(without_paths(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
