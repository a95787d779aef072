"""The parameters of a notebook: the literals of its first code cell, and the checks that papermill does not make."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replication.config import ExperimentConfig
from replication.errors import UserError
from replication.names import ROOT
from replication.runs import read_json

FOLDER = ROOT / "notebooks"


def notebook_names(folder: Path = FOLDER) -> list[str]:
    """The notebooks in reading order, without their suffix."""
    return sorted(path.stem for path in folder.glob("[0-9]*.ipynb"))


def parameters(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """The parameters of a notebook and their defaults.

    Raises:
        UserError: there is no such notebook, or its first code cell is not tagged ``parameters`` or holds more than literals.
    """
    path = folder / f"{name}.ipynb"
    if Path(name).name != name or not path.exists():  # nothing outside the folder is read or executed
        names = ", ".join(notebook_names(folder))
        raise UserError(f"there is no notebook {name}: give a name without folder and suffix, one of {names}")
    cells = [cell for cell in read_json(path, "a notebook").get("cells", []) if cell.get("cell_type") == "code"]
    if not cells or "parameters" not in cells[0].get("metadata", {}).get("tags", []):
        raise UserError(f"the first code cell of {name} is not tagged `parameters`")
    found: dict[str, Any] = {}
    for statement in ast.parse("".join(cells[0]["source"])).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=target)], value=value):
                try:
                    found[target] = ast.literal_eval(value)
                except ValueError:
                    raise UserError(f"parameter {target} of notebook {name} is not a literal") from None
            case _:
                raise UserError(f"the parameters cell of notebook {name} holds more than `name = literal` lines")
    return found


def check_parameters(name: str, given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Those of ``given`` that are parameters of the notebook.

    Raises:
        UserError: for a value of another type than the parameter's default.
    """
    defaults = parameters(name, folder)
    own = {key: value for key, value in given.items() if key in defaults}
    for key, value in own.items():
        types = _types(key, defaults[key])
        if type(value) not in types:
            wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)
            raise UserError(f"parameter {key} of notebook {name} must be {wanted}, not {value!r}")
    return own


def _types(key: str, default: Any) -> tuple[type, ...]:
    """The types a parameter may have: that of its default, or if that is None those of the config field with its name."""
    if default is not None:
        return (float, int) if isinstance(default, float) else (type(default),)
    field = ExperimentConfig.model_fields.get(key)
    kinds = [int] if field is None else [kind for kind in (int, float, str, tuple) if kind.__name__ in str(field.annotation)]
    return (*kinds, type(None))
