"""The API page: signatures and docstrings of what the doors for a reader's own program offer."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

#: Door -> names, or None for all that it offers.
DOORS: dict[str, tuple[str, ...] | None] = {
    "replication.algorithms": None,
    "replication.config": ("ExperimentConfig", "load_profile"),
    "replication.train": ("run",),
    "replication.tasks": ("Problem", "Task", "get_task", "extract_answer", "read_answer", "is_right"),
    "replication.models": ("Policy", "load_policy"),
    "replication.scoring": ("token_log_probs",),
    "replication.ablations": ("PlannedRun", "plan"),
    "replication.sweep": ("run_plan",),
    "replication.tables": ("build_tables", "read_tables"),
    "replication.statistics": ("accuracy", "difference", "bootstrap", "verdicts"),
}


def page() -> str:
    """Each door with its entries."""
    return "\n\n".join(_door(importlib.import_module(name), chosen) for name, chosen in DOORS.items())


def _door(module: ModuleType, chosen: tuple[str, ...] | None) -> str:
    names = chosen or tuple(name for name in module.__all__ if callable(getattr(module, name)))
    parts = [f"## `{module.__name__}`", _paragraphs(module)[0]]
    return "\n\n".join([*parts, *(_entry(name, getattr(module, name)) for name in names)])


def _entry(name: str, found: Any) -> str:
    parts = [f"### {name}"]
    if not _has_fields(found):
        parts.append(f"```python\n{_signature(name, found)}\n```")
    parts += [_section(paragraph) for paragraph in _paragraphs(found)]
    methods = [(key, value) for key, value in vars(found).items() if key == "assign"] if inspect.isclass(found) else []
    parts += [f"```python\n{name}.{_signature(key, value)}\n```" for key, value in methods]
    return "\n\n".join(parts)


def _has_fields(found: Any) -> bool:
    """A config has a signature of sixty parameters, and its fields have descriptions of their own."""
    return inspect.isclass(found) and hasattr(found, "model_fields")


def _signature(name: str, found: Any) -> str:
    signature = inspect.signature(found)
    inside = list(_parameters(signature))
    end = "" if signature.return_annotation in ("None", None, inspect.Signature.empty) else f" -> {signature.return_annotation}"
    text = f"{name}({', '.join(inside)}){end}"
    return text if len(text) < 120 else f"{name}(\n    " + ",\n    ".join(inside) + f",\n){end}"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    """Each as it is written in the code; a star before those that are given by name alone."""
    keyword_only = False
    for one in signature.parameters.values():
        if one.kind is one.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield "*"
        text = "**" * (one.kind is one.VAR_KEYWORD) + one.name
        text += "" if one.annotation is one.empty else f": {one.annotation}"
        yield text + ("" if one.default is one.empty else f" = {one.default!r}")


def _paragraphs(found: Any) -> list[str]:
    return (inspect.getdoc(found) or "").split("\n\n")


def _section(paragraph: str) -> str:
    """A paragraph as it is, or of "Args:" and its like a list."""
    head, _, rest = paragraph.partition("\n")
    if head not in ("Args:", "Returns:", "Raises:", "Attributes:"):
        return paragraph
    lines: list[str] = []
    for line in inspect.cleandoc(rest).splitlines():
        if line.startswith(" "):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(re.sub(r"^([\w, *`]+): ", r"**\1**: ", line))
    return "\n".join([f"{head}", "", *(f"- {line}" for line in lines)])
