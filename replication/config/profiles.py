"""Profiles: the values that each scale gives to the fields of a config. Bad input becomes one line that says what to change."""

from __future__ import annotations

import difflib
import functools
from importlib import resources
from typing import Any

import yaml
from pydantic import ValidationError

from replication.config.experiment import ExperimentConfig
from replication.errors import UserError
from replication.names import METHODS, PROFILES, TASKS
from replication.user_code import is_import_path


def _one_line(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(where, ExperimentConfig.model_fields, n=1)
            known = f"did you mean {near[0]}?" if near else f"known: {', '.join(ExperimentConfig.model_fields)}"
            parts.append(f"{where} is not a setting ({known})")
        else:
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "tuple_type":
                message = 'write a list, such as ["q_proj"]'
            shown = f" (is {item['input']!r})" if where else ""
            parts.append(f"{where}: {message}{shown}" if where else message)
    return "; ".join(parts)


@functools.cache
def _profile_file(name: str) -> dict[str, Any]:
    if name not in PROFILES:
        raise UserError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    return yaml.safe_load(resources.files("replication").joinpath("profiles", f"{name}.yaml").read_text("utf-8"))


def load_profile(
    name: str, *, task: str | None = None, method: str | None = None, seed: int = 0, **overrides: Any
) -> ExperimentConfig:
    """The config of one run under a profile.

    The profile's common values come first, then those of the task, of the method, of the two together, then ``overrides``.

    Args:
        name: smoke, nano, small or paper.
        task, method: default to the first of the profile's tasks, and to s_grpo.
        seed: the seed of the run.
        overrides: any field of ExperimentConfig.

    Raises:
        UserError: for an unknown profile or field, or an impossible value.
    """
    profile = _profile_file(name)
    task = task or next(iter(profile["tasks"]))
    method = method or "s_grpo"
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    if method not in METHODS and not is_import_path(method):
        raise UserError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}, or package.module:object")
    own = profile["methods"].get(method) or {}
    values: dict[str, Any] = {"profile": name, "task": task, "method": method, "seed": seed, **profile["common"]}
    values |= profile["tasks"].get(task) or {}
    values |= {key: value for key, value in own.items() if key != "tasks"}
    values |= own.get("tasks", {}).get(task) or {}
    try:
        return ExperimentConfig(**(values | overrides))
    except ValidationError as error:
        raise UserError(f"bad config: {_one_line(error)}") from None


def profile_plan(name: str) -> dict[str, Any]:
    """The ``plan`` section of a profile: seeds, tasks and grids of the ablations."""
    return _profile_file(name)["plan"]
