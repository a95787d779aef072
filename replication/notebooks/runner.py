"""The notebooks, run by papermill with checked parameters in this very Python, and written out as pages.

An executed copy goes to <results_dir>/notebooks/ as .ipynb and .html. Neither holds a time, a progress bar or a path of this
machine, so the same notebook over the same runs gives the same files.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from replication.config import ExperimentConfig, profile_plan
from replication.console import say
from replication.errors import Stopped, UserError
from replication.names import ROOT
from replication.notebooks.kernels import ended_by_signals, kernel_manager
from replication.report.pages import notebook_page
from replication.runs import atomic_write, explained, make_folder, read_json
from replication.signals import raise_if_stopped

FOLDER = ROOT / "notebooks"
#: A widget of a live front end; dropped from executed copies, since a page has no kernel behind it.
WIDGET = "application/vnd.jupyter.widget-view+json"
#: Parameters of notebooks that are no fields of ExperimentConfig.
OPTIONS = {
    "results_dir": "folder of run directories and tables, seen from notebooks/",
    "variant": 'the plan: "default", or "full" with more seeds and finer grids',
    "seeds": "seeds of the headline comparison; None = as many as the plan says",
    "train": "run what is missing; False = only read the tables in results_dir",
    "workers": "processes that train; None = one for each core",
    "item": "which problem of the test split is looked at",
}


class NotebooksFailed(UserError):
    """Some notebooks stopped at an error; the others were run. The command line exits with status 1."""

    exit_status = 1


@dataclass(frozen=True)
class Executed:
    """A notebook that ran to its end, and the files it became."""

    name: str
    notebook: Path
    page: Path


def notebook_names(folder: Path = FOLDER) -> list[str]:
    """The notebooks in reading order, without their suffix."""
    return sorted(path.stem for path in folder.glob("[0-9]*.ipynb"))


def parameters(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """The parameters of a notebook and their defaults: the literals of its first code cell.

    Raises:
        UserError: there is no such notebook, or its first code cell is not tagged ``parameters`` or holds more than literals.
    """
    path = folder / f"{name}.ipynb"
    if not path.exists() or folder.resolve() not in path.resolve().parents:  # nothing is read or written beside the folder
        names = ", ".join(notebook_names(folder))
        raise UserError(f"there is no notebook {name}: give a name without folder and suffix, one of {names}")
    cells = [cell for cell in read_json(path, "a notebook").get("cells", []) if cell.get("cell_type") == "code"]
    if not cells or "parameters" not in cells[0].get("metadata", {}).get("tags", []):
        raise UserError(f"the first code cell of {name} is not tagged `parameters`")
    source = cells[0]["source"]
    found: dict[str, Any] = {}
    for statement in ast.parse(source if isinstance(source, str) else "".join(source)).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=target)], value=value):
                try:
                    found[target] = ast.literal_eval(value)
                except ValueError:
                    raise UserError(f"parameter {target} of notebook {name} is not a literal") from None
            case _:
                raise UserError(f"the parameters cell of notebook {name} holds more than `name = literal` lines")
    return found


def check_parameters(name: str, given: Mapping[str, Any], folder: Path = FOLDER) -> dict[str, Any]:
    """``given`` after the checks that papermill does not make.

    Raises:
        UserError: for a parameter that the notebook does not have, or a value of another type than its default.
    """
    defaults = parameters(name, folder)
    for key, value in given.items():
        if key not in defaults:
            raise UserError(f"notebook {name} has no parameter {key!r}: choose from {', '.join(defaults)}")
        default = defaults[key]
        wanted: tuple[type, ...] = (type(default),)
        if default is None:
            wanted = _kinds(key)
        elif isinstance(default, float):
            wanted = (float, int)
        if type(value) not in wanted:
            kinds = " or ".join("None" if kind is type(None) else kind.__name__ for kind in wanted)
            raise UserError(f"parameter {key} of notebook {name} must be {kinds}, not {value!r}")
    return dict(given)


def _kinds(key: str) -> tuple[type, ...]:
    """What a parameter may be whose default is None."""
    field = ExperimentConfig.model_fields.get(key)
    if field is None:
        return (int, type(None))
    kinds = [kind for kind in (int, float, str, tuple) if kind.__name__ in str(field.annotation)]
    return (*kinds, type(None))


def run_all(
    profile: str,
    results_dir: str | Path,
    names: Sequence[str] | None = None,
    progress: bool = True,
    given: Mapping[str, Any] | None = None,
    *,
    folder: Path = FOLDER,
) -> list[Executed]:
    """Execute notebooks one after the other, each in a fresh kernel of this Python with one thread.

    Args:
        profile: smoke, nano or paper; becomes the parameter ``profile`` of each.
        results_dir: where runs and tables lie, and where executed notebooks go (``notebooks/`` in it).
        names: which notebooks; default: all, in reading order.
        progress: a line on stderr for each notebook.
        given: further parameters; each must exist in at least one of the notebooks, and goes to those that have it.
        folder: where the notebooks lie; they are executed with it as working directory.

    Raises:
        UserError: an unknown notebook or parameter, before anything is run; a results folder that cannot be written.
        NotebooksFailed: naming each notebook that failed, its cell and the error, after all the others were run.
        Stopped: a signal came; the notebook that was running is ended, and a sweep in it has saved.
    """
    profile_plan(profile)  # an unknown profile is refused before anything starts
    chosen = list(notebook_names(folder) if names is None else names)
    shared = {"profile": profile, "results_dir": _seen_from(folder, Path(results_dir)), **(given or {})}
    plan = {name: _for_notebook(name, shared, folder) for name in chosen}
    for key in given or {}:
        if not any(key in own for own in plan.values()):
            raise UserError(f"none of these notebooks has a parameter {key!r}: {', '.join(chosen)}")
    target = Path(results_dir) / "notebooks"
    make_folder(target)

    done, failures = [], []
    for name in tqdm(chosen, desc="notebooks", disable=not (progress and sys.stderr.isatty()), leave=False):
        raise_if_stopped()
        try:
            started = time.monotonic()
            done.append(_execute(name, plan[name], folder, target))
            _note_seconds(target, name, time.monotonic() - started)
        except _CellFailed as error:
            failures.append(f"notebook {name} failed in code cell {error.cell} ({error.reason})")
        except Exception as error:  # a kernel that never answered, a page that cannot be made: of this notebook alone
            raise_if_stopped()
            if isinstance(error, Stopped) or isinstance(error.__cause__, OSError):  # a full disk is so for all
                raise
            failures.append(f"notebook {name} failed ({type(error).__name__}: {_one_line(str(error))})")
        if progress:
            say(f"{name}: {'failed' if failures and name in failures[-1] else 'done'}")
    if failures:
        raise NotebooksFailed("; ".join(failures))
    return done


def _note_seconds(target: Path, name: str, seconds: float) -> None:
    """Into <target>/seconds.csv: how long a notebook took on this machine; the only file there that differs between machines."""
    atomic_write(target / "seconds.csv", pd.DataFrame((read_seconds(target) | {name: round(seconds)}).items()).to_csv(
        index=False, header=["notebook", "seconds"]
    ))  # fmt: skip


def read_seconds(folder: str | Path) -> dict[str, int]:
    """Seconds of each notebook from <folder>/seconds.csv; none if it is not there or cannot be read."""
    try:
        frame = pd.read_csv(Path(folder) / "seconds.csv")
        return dict(zip(frame["notebook"].astype(str), frame["seconds"].astype(int), strict=True))
    except (OSError, ValueError, KeyError):
        return {}


def reading_order(profile: str, results_dir: str | Path, folder: Path = FOLDER) -> str:
    """A Markdown table of the notebooks: the question each asks, how many exercises it has, how long it took when last run.

    Seconds are those of ``results_dir``, otherwise those committed for the profile; empty where nobody has run it.
    """
    seconds = read_seconds(ROOT / "results" / profile / "notebooks") | read_seconds(Path(results_dir) / "notebooks")
    lines = ["| notebook | question | exercises | seconds |", "|---|---|---|---|"]
    for name in notebook_names(folder):
        cells = read_json(folder / f"{name}.ipynb", "a notebook")["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        found = re.search(r"\*\*Question\.\*\* (.+?)(?:\n\n|$)", "\n\n".join(texts), re.S)
        if found:
            exercises = sum(bool(re.match(r"\*\*\d+\.\*\* ", text)) for text in texts)
            row = (f"[{name}]({name}.ipynb)", " ".join(found[1].split()), exercises or "", seconds.get(name, ""))
            lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def _for_notebook(name: str, shared: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    own = parameters(name, folder)
    return check_parameters(name, {key: value for key, value in shared.items() if key in own}, folder)


def _seen_from(folder: Path, path: Path) -> str:
    """``path`` relative to the notebooks: what a notebook is given must not name this machine's folders."""
    return os.path.relpath(path.resolve(), folder.resolve())


class _CellFailed(Exception):
    def __init__(self, cell: int, reason: str) -> None:
        super().__init__(reason)
        self.cell, self.reason = cell, reason


def _execute(name: str, given: Mapping[str, Any], folder: Path, target: Path) -> Executed:
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    failed = target / f"{name}.failed.ipynb"
    with tempfile.TemporaryDirectory() as scratch, explained(target):
        copy = Path(scratch) / f"{name}.ipynb"
        manager = kernel_manager()
        try:
            with ended_by_signals(manager):
                papermill.execute_notebook(
                    str(folder / f"{name}.ipynb"),
                    str(copy),
                    parameters=dict(given),
                    cwd=str(folder),
                    kernel_name="python3",
                    language="python",
                    kernel_manager_class=manager,
                    progress_bar=False,
                    start_timeout=180,
                )
        except (papermill.PapermillExecutionError, RuntimeError) as error:
            raise_if_stopped()  # then it was ended for that
            if not isinstance(error, papermill.PapermillExecutionError | DeadKernelError):
                raise
            # What was executed so far is kept for the reader, beside the good copy of an earlier run.
            stopped = cleaned(nbformat.read(copy, as_version=4))
            atomic_write(failed, nbformat.writes(stopped) + "\n")
            if isinstance(error, DeadKernelError):
                reason = f"its kernel died: {_one_line(str(error))}; runs that were finished or saved are kept"
            else:
                reason = f"{error.ename}: {_one_line(error.evalue)}"
            raise _CellFailed(_code_cell_at_error(stopped), reason) from None
        notebook = cleaned(nbformat.read(copy, as_version=4))
    paths = Executed(name, target / f"{name}.ipynb", target / f"{name}.html")
    atomic_write(paths.notebook, nbformat.writes(notebook) + "\n")
    atomic_write(paths.page, notebook_page(notebook, _title(notebook, name), show_code=name.startswith("0")))
    failed.unlink(missing_ok=True)
    return paths


def _code_cell_at_error(notebook: Any) -> int:
    """Which code cell of the committed notebook stopped, from 1; the cell that papermill puts in does not count."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    own = [cell for cell in code if "injected-parameters" not in cell.metadata.get("tags", [])]
    stopped = [any(output.output_type == "error" for output in cell.outputs) for cell in own]
    return stopped.index(True) + 1 if True in stopped else len(own)


def cleaned(notebook: Any) -> Any:
    """The notebook without what differs from run to run or from machine to machine: times, progress bars, absolute paths."""
    notebook = notebook.copy()
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in ("tags", "jupyter")}
        if cell.cell_type != "code":
            continue
        # stderr holds progress bars and warnings: seconds and paths, nothing that a notebook shows.
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr" and not _is_progress(output)]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):  # a picture with controls: without a kernel only the picture is left
                output.data.pop(WIDGET, None)
            _in_texts(output, without_paths)
    return notebook


def _is_progress(output: Any) -> bool:
    """Whether an output is a progress bar, which tqdm and transformers show as a widget."""
    data = output.get("data", {})
    return WIDGET in data and re.search(r"\d+%\|", data.get("text/plain", "")) is not None


def _in_texts(node: Any, change: Callable[[str], str]) -> None:
    for key, value in list(node.items()) if isinstance(node, dict) else ():
        if isinstance(value, str) and not key.startswith("image/png"):
            node[key] = change(value)
        elif isinstance(value, list):
            node[key] = [change(item) if isinstance(item, str) else item for item in value]
        else:
            _in_texts(value, change)


def without_paths(text: str) -> str:
    """``text`` with the repository's folder cut off paths, and those of the interpreter and the user shortened."""
    for folder, short in ((f"{ROOT}{os.sep}", ""), (str(ROOT), "."), (sys.prefix, "<python>"), (str(Path.home()), "~")):
        if len(folder) > 2:
            text = text.replace(folder, short)
    return text


def _title(notebook: Any, name: str) -> str:
    for cell in notebook["cells"]:
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        found = re.search(r"^# +(.+)$", source, re.M) if cell["cell_type"] == "markdown" else None
        if found:
            return re.sub(r"[`*$]", "", found.group(1)).strip()
    return name


def first_heading(path: Path) -> str:
    """The title of a notebook file."""
    return _title(read_json(path, "a notebook"), path.stem)


def _one_line(text: str, longest: int = 300) -> str:
    line = " ".join(without_paths(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
