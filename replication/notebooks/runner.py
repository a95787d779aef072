"""The notebooks, executed by papermill with checked parameters in this very Python, and written as pages.

An executed copy goes to <results_dir>/notebooks/ as .ipynb and .html. The same notebook over the same runs gives the same files.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from replication.config import profile_plan
from replication.console import say
from replication.errors import Stopped, UserError
from replication.notebooks.cleaning import cleaned, one_line
from replication.notebooks.contents import note_seconds, title
from replication.notebooks.kernels import ended_by_signals, kernel_manager
from replication.notebooks.parameters_cell import FOLDER, check_parameters, notebook_names
from replication.report import notebook_page
from replication.runs import atomic_write, explained, make_folder
from replication.signals import raise_if_stopped


class NotebooksFailed(UserError):
    """Some notebooks stopped at an error; the others were run. The command line exits with status 1."""

    exit_status = 1


def run_all(
    profile: str,
    results_dir: str | Path,
    names: Sequence[str] | None = None,
    given: Mapping[str, Any] | None = None,
    *,
    folder: Path = FOLDER,
) -> list[Path]:
    """Execute notebooks one after the other, each in a fresh kernel of this Python with one thread.

    Args:
        profile: smoke, nano, small or paper; becomes the parameter ``profile`` of each.
        results_dir: the folder of runs and tables; executed notebooks go to ``notebooks/`` in it.
        names: the notebooks to run; default: all, in reading order.
        given: further parameters; each must exist in at least one of the notebooks, and goes to those that have it.
        folder: the folder of the notebooks, which is also their working directory.

    Raises:
        UserError: an unknown notebook or parameter, before anything is run; a results folder that cannot be written.
        NotebooksFailed: naming each notebook that failed, its cell and the error, after all the others were run.
        Stopped: a signal came; the running notebook is ended, and a sweep in it has saved.
    """
    profile_plan(profile)  # an unknown profile is refused before anything starts
    chosen = list(notebook_names(folder) if names is None else names)
    # Relative to the notebook's folder, so that its executed copy names no folder of this machine.
    seen = os.path.relpath(Path(results_dir).resolve(), folder.resolve())
    shared = {"profile": profile, "results_dir": seen, **(given or {})}
    plan = {name: check_parameters(name, shared, folder) for name in chosen}
    for key in given or {}:
        if not any(key in own for own in plan.values()):
            raise UserError(f"none of these notebooks has a parameter {key!r}: {', '.join(chosen)}")
    target = Path(results_dir) / "notebooks"
    make_folder(target)

    done, failures = [], []
    for name in tqdm(chosen, desc="notebooks", disable=None, leave=False):
        raise_if_stopped()
        started = time.monotonic()
        try:
            done.append(_execute(name, plan[name], folder, target))
            note_seconds(target, name, time.monotonic() - started)
        except _CellFailed as error:
            failures.append(f"notebook {name} failed in {error}")
        except Exception as error:  # no answer of a kernel, or no page: the other notebooks can still run
            raise_if_stopped()
            if isinstance(error, Stopped) or isinstance(error.__cause__, OSError):  # a full disk stops them all
                raise
            failures.append(f"notebook {name} failed ({type(error).__name__}: {one_line(str(error))})")
        say(f"{name}: {'failed' if failures and name in failures[-1] else 'done'}")
    if failures:
        raise NotebooksFailed("; ".join(failures))
    return done


class _CellFailed(Exception):
    """A cell raised or its kernel died; the text says which cell and why."""


def _execute(name: str, given: Mapping[str, Any], folder: Path, target: Path) -> Path:
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
            raise_if_stopped()  # a signal ended the kernel: the notebook has not failed
            if not isinstance(error, papermill.PapermillExecutionError | DeadKernelError):
                raise
            # The reader keeps the executed part, beside the good copy of an earlier run.
            stopped = nbformat.read(copy, as_version=4)
            cell = cells_started(stopped)
            atomic_write(failed, nbformat.writes(cleaned(stopped)) + "\n")
            if isinstance(error, DeadKernelError):
                reason = f"its kernel died: {one_line(str(error))}; runs that were finished or saved are kept"
            else:
                reason = f"{error.ename}: {one_line(error.evalue)}"
            raise _CellFailed(f"code cell {cell} ({reason})") from None
        notebook = cleaned(nbformat.read(copy, as_version=4))
    page = target / f"{name}.html"
    atomic_write(target / f"{name}.ipynb", nbformat.writes(notebook) + "\n")
    unfolded, figures = name.startswith("0"), target.parent / "figures"
    atomic_write(page, notebook_page(notebook, title(notebook, name), show_code=unfolded, figures=figures))
    failed.unlink(missing_ok=True)
    return page


def cells_started(notebook: Any) -> int:
    """How many code cells papermill started, those it put in aside: the number of the cell that stopped, from 1."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and "injected-parameters" not in cell.metadata["tags"]]
    return sum(cell.metadata["papermill"].get("start_time") is not None for cell in code)
