"""Notebooks: parameters are checked, failures are named and cost nothing else, and what is written is the same everywhere."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter

from replication import signals
from replication.errors import Stopped, UserError
from replication.names import ROOT
from replication.notebooks import bullets, contents, parameters, reading_order, runner
from replication.notebooks.kernels import kernel_manager
from replication.report import EXHIBITS, notebook_page


def write(folder: Path, name: str, *cells: str | tuple[str, ...]) -> None:
    """A notebook: a string is a code cell (the first one the parameters), a tuple of one string a markdown cell."""
    built, tagged = [], False
    for number, cell in enumerate(cells):
        if isinstance(cell, tuple):
            built.append(nbformat.v4.new_markdown_cell(cell[0], id=f"cell-{number}"))
            continue
        tags = {} if tagged else {"tags": ["parameters"]}
        tagged = True
        built.append(nbformat.v4.new_code_cell(cell, id=f"cell-{number}", metadata=tags))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook(cells=built)))


PARAMETERS = 'profile = "nano"\nresults_dir = "../results/local/nano"\nseeds = None\nrate = 1.0'


def test_one_run_of_good_and_bad(tmp_path: Path) -> None:
    """Two kernels in all: parameters reach the notebook, a failing one is named, the other is written and says nothing of here."""
    folder, results = tmp_path / "notebooks", tmp_path / "results"
    shown = (
        "import os, sys\n"
        "print(profile, results_dir, seeds, rate)\n"
        "print(os.environ['OMP_NUM_THREADS'], os.path.isdir(results_dir))\n"
        "print('at', __import__('replication').__file__)\n"
        "print('3 sec' + 'onds', file=sys.stderr)\n"
        "from tqdm.notebook import tqdm; list(tqdm(range(3)))\n"
        f"assert os.path.realpath(sys.executable) == {os.path.realpath(sys.executable)!r}"
    )
    write(folder, "01_good", ("# A title: $x^2$\n\ntext <b>bold</b> `$code$`",), PARAMETERS, shown)
    write(folder, "00_bad", PARAMETERS, "1 / 0", "print('never')")
    with pytest.raises(runner.NotebooksFailed) as caught:
        runner.run_all("smoke", results, given={"rate": 2}, folder=folder)
    message = str(caught.value)
    assert "00_bad" in message and "ZeroDivisionError" in message and "01_good" not in message and "\n" not in message
    assert "code cell 2" in message  # as the reader counts them, without the cell that papermill puts in
    assert caught.value.exit_status == 1

    made = results / "notebooks"
    assert {path.name for path in made.iterdir()} == {"00_bad.failed.ipynb", "01_good.ipynb", "01_good.html", "seconds.csv"}
    assert set(contents.read_seconds(made)) == {"01_good"}
    text = (made / "01_good.ipynb").read_text()
    assert "smoke ../results None 2" in text and "1 True" in text and "seconds" not in text
    assert str(ROOT) not in text and "replication/__init__.py" in text
    executed = json.loads(text)
    assert "papermill" not in executed["metadata"]
    assert all(set(cell["metadata"]) <= {"tags", "jupyter"} for cell in executed["cells"])
    assert "it/s" not in text and "%|" not in text
    assert not re.search(r"20\d\d-\d\d-\d\dT", text)

    page = (made / "01_good.html").read_text()
    assert "<title>A title: x^2</title>" in page and 'alt="x^2"' in page and "$code$" in page
    assert "viewport" in page and "http" not in page.replace("http://www.w3.org", "")


def test_a_fault_of_one_notebook_does_not_stop_the_others(tmp_path: Path, monkeypatch) -> None:
    """A kernel that did not answer, and a formula that no page can set, once ended the notebooks after it too."""
    names = ["01_dead", "02_formula", "03_page", "04_good"]
    for name in names:
        write(tmp_path / "notebooks", name, PARAMETERS)
    faults = {
        "01_dead": RuntimeError("Kernel died before replying to kernel_info"),
        "02_formula": ValueError("\\foo\n^\nParseFatalException: Unknown symbol"),
        "03_page": UserError("the table is damaged"),
    }

    def execute(name: str, *_):
        if name in faults:
            raise faults[name]
        return tmp_path / f"{name}.html"

    def run() -> None:
        runner.run_all("smoke", tmp_path / "results", names, folder=tmp_path / "notebooks")

    monkeypatch.setattr(runner, "_execute", execute)
    with pytest.raises(runner.NotebooksFailed) as caught:
        run()
    message = str(caught.value)
    assert all(name in message for name in faults) and "04_good" not in message and "\n" not in message
    assert "failed (RuntimeError: Kernel died before replying to kernel_info)" in message
    assert set(contents.read_seconds(tmp_path / "results/notebooks")) == {"04_good"}

    full = UserError("no space left on device")
    full.__cause__ = OSError(28, "no space left on device")
    for stops_all in (full, Stopped(15)):
        faults["02_formula"] = stops_all
        with pytest.raises(type(stops_all), match=str(stops_all)):
            run()


@pytest.mark.parametrize("saves", [True, False])
def test_a_signal_ends_the_notebook_that_runs(tmp_path: Path, saves: bool) -> None:
    """A SIGTERM, or the first Ctrl-C, once waited for the end of the notebook; what a sweep in it has is saved first."""
    cell = (
        "from replication import signals\nimport time, pathlib\n"
        "with signals.handled():\n    pathlib.Path('started').touch()\n    while not signals.stop_requested(): time.sleep(0.05)\n"
        "    pathlib.Path('saved').touch()\n    signals.raise_if_stopped()"
        if saves
        else "import time, pathlib\npathlib.Path('started').touch()\ntime.sleep(1000)"
    )
    folder, sent = tmp_path / "notebooks", []
    write(folder, "01_long", PARAMETERS, cell)
    write(folder, "02_next", PARAMETERS)

    def interrupt() -> None:
        while not (folder / "started").exists():
            time.sleep(0.05)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with signals.handled(), pytest.raises(Stopped):
        runner.run_all("smoke", tmp_path / "results", folder=folder)
    thread.join()
    assert time.monotonic() - sent[0] < 15 and (folder / "saved").exists() == saves
    assert not list((tmp_path / "results/notebooks").iterdir()), "what was stopped has not failed"


@pytest.mark.slow
def test_a_kernel_killed_in_the_middle_of_a_notebook_is_named_and_the_others_run(tmp_path):
    folder, results = tmp_path / "notebooks", tmp_path / "results"
    dies = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    write(folder, "01_dies", PARAMETERS, "print('before')", dies, "print('never')")
    write(folder, "02_good", PARAMETERS, "print('good')")
    with pytest.raises(runner.NotebooksFailed, match="01_dies failed in code cell 3 .*kernel died") as caught:
        runner.run_all("smoke", results, folder=folder)
    assert "02_good" not in str(caught.value) and "\n" not in str(caught.value)
    made = {path.name for path in (results / "notebooks").iterdir()}
    assert made == {"01_dies.failed.ipynb", "02_good.ipynb", "02_good.html", "seconds.csv"}


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "x/../../evil"])
def test_a_notebook_beside_the_folder_is_never_run(tmp_path, name):
    write(tmp_path, "evil", PARAMETERS, "raise SystemExit")
    (tmp_path / "notebooks/x").mkdir(parents=True)
    with pytest.raises(UserError, match="there is no notebook"):
        runner.run_all("smoke", tmp_path / "results", [name], folder=tmp_path / "notebooks")


@given(st.text() | st.just('"\n__import__("os").abort()\n"') | st.lists(st.text(max_size=5), max_size=3))
def test_a_notebook_parameter_stays_a_literal(value):
    """papermill writes parameters as code: what it writes is the value and nothing else."""
    from papermill.translators import PythonTranslator

    (statement,) = ast.parse(PythonTranslator.codify({"given": value})).body
    assert ast.literal_eval(statement.value) == value


def test_unknown_and_misfit_parameters_are_refused_before_anything_runs(tmp_path: Path) -> None:
    write(tmp_path, "01_good", PARAMETERS)
    for name, value in (("tempo", 1), ("rate", "fast"), ("seeds", True), ("seeds", 1.5)):
        with pytest.raises(UserError, match=name):
            runner.run_all("smoke", tmp_path / "results", given={name: value}, folder=tmp_path)
    with pytest.raises(UserError, match="no notebook 09_none"):
        runner.run_all("smoke", tmp_path / "results", ["09_none"], folder=tmp_path)
    with pytest.raises(UserError, match="unknown profile"):
        runner.run_all("giant", tmp_path / "results", folder=tmp_path)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("source", ["import os", "x = open('a')", "x: int = f()", "x = y = 1 + z"])
def test_a_parameters_cell_holds_literals_alone(tmp_path: Path, source: str) -> None:
    write(tmp_path, "01_bad", source)
    with pytest.raises(UserError, match="literal"):
        parameters("01_bad", tmp_path)


def test_an_untagged_first_cell_is_refused(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("x = 1")
    (tmp_path / "01_bad.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[cell])))
    with pytest.raises(UserError, match="parameters"):
        parameters("01_bad", tmp_path)


def test_results_that_cannot_be_written_are_one_clear_line(tmp_path: Path) -> None:
    write(tmp_path / "notebooks", "01_good", PARAMETERS)
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UserError, match="results"):
        runner.run_all("smoke", tmp_path / "results", folder=tmp_path / "notebooks")
    assert (tmp_path / "results").read_text() == "a file"


def test_pages_link_to_each_other(tmp_path: Path) -> None:
    cell = nbformat.v4.new_markdown_cell("to [the next](02_s_grpo.ipynb), not [elsewhere](other/x.ipynb)")
    data, metadata = DisplayFormatter().format(reading_order("smoke", tmp_path))
    output = nbformat.v4.new_output("execute_result", data, metadata=metadata)
    table = nbformat.v4.new_code_cell("reading_order(profile, results_dir)", outputs=[output])
    page = notebook_page(nbformat.v4.new_notebook(cells=[cell, table]), "t", show_code=True)
    assert 'href="02_s_grpo.html"' in page and 'href="other/x.ipynb"' in page
    assert 'href="20_report.html"' in page and 'href="20_report.ipynb"' not in page


def test_a_token_that_is_a_script_stays_text_in_a_page() -> None:
    """The sentence that names the most decisive token was once Markdown, through which HTML passes as it is."""
    token = "<script>alert(1)</script>"
    row = {"profile": "nano", "correct": 1, "completion": 0, "position": 0, "worth": 0.5, "token": token, "decisive": 0}
    group = {"prompt": "a question", "right_in_group": 1, "group_size": 4}
    table = pd.DataFrame([row | group | {"method": "grpo", "selector": "all", "credit": 1.0}])
    shown = EXHIBITS["worked_example"].show({"worked_example": table}, "nano")
    assert token in shown.sentences[0]
    outputs = []
    for value in (bullets(shown.sentences), shown):
        data, metadata = DisplayFormatter().format(value)
        outputs.append(nbformat.v4.new_output("display_data", data, metadata=metadata))
    cell = nbformat.v4.new_code_cell("bullets(shown.sentences), shown", outputs=outputs)
    page = notebook_page(nbformat.v4.new_notebook(cells=[cell]), "t", show_code=True)
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_kernel_is_this_python() -> None:
    manager = kernel_manager()(kernel_name="whatever is installed here")
    assert manager.kernel_spec.argv[0] == sys.executable
