"""The values of a config as words of a command line, and back."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from replication.config.experiment import ExperimentConfig
from replication.config.profiles import load_profile
from replication.errors import UserError


def run_command(config: ExperimentConfig, out: str | Path) -> str:
    """The command that makes this very run: its profile, and each field that differs from the profile's config."""
    default = load_profile(config.profile, task=config.task, method=config.method, seed=config.seed).model_dump(mode="json")
    words = ["python", "-m", "replication", "run", "--profile", config.profile, "--task", config.task]
    words += ["--method", config.method, "--seed", str(config.seed)]
    for name, value in config.model_dump(mode="json").items():
        if value != default.get(name):
            text = (value or "") if _is_free_text(name) else json.dumps(value)
            words += ["--set", f"{name}={text}"]
    return shlex.join([*words, "--out", str(out)])


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """``["steps=5", "lora_targets=[q_proj]"]`` to values, which are never evaluated; later ones win.

    Raises:
        UserError: for a setting without "=", or a value that cannot be read.
    """
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--set {setting!r} is not FIELD=VALUE, without blanks around the =")
        values[name] = _read_value(name, text)
    return values


def _is_free_text(name: str) -> bool:
    field = ExperimentConfig.model_fields.get(name)
    return field is not None and field.annotation in (str, str | None)


def _read_value(name: str, text: str) -> Any:
    """A path, name or revision is the text itself (empty = none); any other value is YAML."""
    if _is_free_text(name):
        return text or None
    try:
        return json.loads(text)  # what ``run_command`` wrote; YAML reads 1e-05 and escaped emoji otherwise
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--set {name}: {' '.join(str(error).split())}") from None
