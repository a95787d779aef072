"""The committed notebooks: stripped, short cells, documented parameters, names and commands that exist."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import types
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

import replication
from replication.__main__ import main
from replication.config import ExperimentConfig
from replication.names import ROOT
from replication.notebooks import notebook_names, parameters
from replication.notebooks.parameters_cell import FOLDER
from replication.report import with_formulas

COMMITTED = notebook_names()
#: Parameters of notebooks that are no fields of ExperimentConfig.
OPTIONS = {"results_dir", "variant", "seeds", "train", "workers", "item"}


def code_cells(name: str) -> list[str]:
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    return [source if isinstance(source, str) else "".join(source) for source in sources]


@pytest.mark.parametrize("name", COMMITTED)
def test_every_name_that_a_notebook_takes_from_the_package_exists(name: str) -> None:
    """Functions were once moved to another module, and no quick test saw that four notebooks still used the old one."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    code = "\n".join(re.sub(r"(?m)^\s*[%!].*$", "pass", c.source) for c in notebook.cells if c.cell_type == "code")
    tree, modules = ast.parse(code), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "replication":
            if node.module == "replication.integrations.trl" and find_spec("trl") is None:
                continue  # an optional extra: the notebook itself looks whether it is there
            module = importlib.import_module(node.module)
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                found = getattr(module, alias.name, None) or importlib.import_module(path)
                if isinstance(found, types.ModuleType):
                    modules[alias.asname or alias.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_notebooks_are_stripped(name: str) -> None:
    found = json.loads((FOLDER / f"{name}.ipynb").read_text())
    assert found["nbformat"] == 4 and set(found["metadata"]) <= {"kernelspec", "language_info"}
    for cell in found["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
        assert set(cell["metadata"]) <= {"tags"}
    identifiers = [cell["id"] for cell in found["cells"]]
    assert len(set(identifiers)) == len(identifiers)


@pytest.mark.parametrize("name", COMMITTED)
def test_parameters_are_fields_or_documented_options(name: str) -> None:
    found = parameters(name)
    assert set(found) <= set(ExperimentConfig.model_fields) | OPTIONS
    assert "profile" in found and len(found) <= 15
    source = code_cells(name)[0]
    assert all("#" in line for line in source.strip().splitlines()), "each parameter needs a comment that says what it is"


@pytest.mark.parametrize("name", COMMITTED)
def test_cells_are_short_and_define_nothing_of_the_package(name: str) -> None:
    package = set()
    for path in Path(replication.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                package.add(node.name)
    for source in code_cells(name):
        assert len(source.splitlines()) <= 20
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.name not in package, f"{name} defines {node.name}, which the package has"
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    for cell in cells:
        if cell["cell_type"] == "markdown":
            text = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
            assert len(text.splitlines()) <= 24, f"a text cell of {name} is too long"


@pytest.mark.parametrize("name", COMMITTED)
def test_formulas_can_be_set_without_a_browser(name: str) -> None:
    for cell in json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            with_formulas(cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"]))


@pytest.mark.parametrize("name", COMMITTED)
def test_the_commands_that_a_notebook_names_exist(name: str) -> None:
    """The report once sent its readers to a target of make that does something else."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
    for span in re.findall(r"`([^`]+)`", text):
        program, *words = shlex.split(span) if span.startswith(("make ", "python ")) else [""]
        if program == "make":
            assert words[0] in targets, span
        elif program == "python":
            assert words[:2] == ["-m", "replication"], span
            with pytest.raises(SystemExit) as ended:
                main([*words[2:], "--help"])
            assert ended.value.code == 0, span
