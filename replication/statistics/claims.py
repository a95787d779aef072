"""The claims file: what is replicated, and the rule and threshold each claim is judged by (data/claims.yaml)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from replication.errors import UserError
from replication.names import HEADLINE, METHOD_LABELS, NEW_SEED

Method = Literal["base", "grpo", "s_grpo", "t_spmo"]
Task = Literal["word_problems", "multiplication", "svamp"]
Measure = Literal[
    "accuracy", "accuracy_difference", "kept_fraction", "regularisation", "peak_gpu_memory",
    "drift_at_equal_accuracy", "train_test_gap", "failing_cell",
]  # fmt: skip
_UNITS: dict[Measure, str] = {
    "accuracy": "%",
    "accuracy_difference": "points",
    "kept_fraction": "%",
    "regularisation": "points",
    "peak_gpu_memory": "GB",
    "drift_at_equal_accuracy": "log ratio",
    "train_test_gap": "points",
    "failing_cell": "points",
}
#: Measures that take every method but the last against the last.
_AGAINST_LAST = ("accuracy_difference", "regularisation", "drift_at_equal_accuracy", "train_test_gap")


class Claim(BaseModel):
    """One claim; the meaning of measures and rules is written at the head of data/claims.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str = Field(min_length=1)
    mark: Literal["P", "S", "R", "own"] = Field(description="who says so; only P may be printed as the paper's word")
    scale: Literal["paper", "small", "nano"] = Field(description="the profile whose runs are evidence")
    counterpart: str | None = Field(None, description="the paper's claim beside which this one stands")
    text: str = Field(min_length=1)
    paper_value: int | float | str | None = Field(None, description="as the paper words it, empty where we do not hold it")
    measure: Measure
    methods: tuple[Method, ...] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    rule: Literal["above", "below", "between", "agrees"]
    threshold: float
    upper: float | None = Field(None, description="upper end, for the rule between")
    resolution: float | None = Field(None, gt=0, description="widest half-width that still counts, for the rule agrees")
    fails_under: float | None = Field(None, description="margin of methods[0] minus the base, for the measure failing_cell")
    cell: dict[str, float] = Field({}, description="values of config fields that name the runs, for the measure train_test_gap")
    by_design: bool = False
    asides: Literal["none", "before", "after"] = Field("after", description="condition of the word problems, where runs have one")
    tuned: bool = Field(False, description="judged only where the ablation learning_rate confirms the headline's learning rates")

    @model_validator(mode="after")
    def _fields_fit(self) -> Claim:
        if (self.rule == "between") != (self.upper is not None):
            raise ValueError("`upper` goes with the rule between, and only with it")
        if (self.rule == "agrees") != (self.resolution is not None):
            raise ValueError("`resolution` goes with the rule agrees, and only with it")
        if self.measure in _AGAINST_LAST and len(self.methods) < 2:
            raise ValueError(f"{self.measure} needs two methods or more, the last of which is the one compared with")
        if (self.measure == "failing_cell") != (self.fails_under is not None):
            raise ValueError("`fails_under` goes with the measure failing_cell, and only with it")
        if self.cell and self.measure != "train_test_gap":
            raise ValueError("`cell` goes with the measure train_test_gap")
        if self.tuned and self.measure not in ("accuracy_difference", "regularisation"):
            raise ValueError("`tuned` goes with accuracy_difference and regularisation")
        return self

    @property
    def unit(self) -> str:
        """Unit of value, low, high and threshold."""
        return _UNITS[self.measure]

    @property
    def subjects(self) -> tuple[Method, ...]:
        """The methods that are measured, against the last one where the measure compares; of failing_cell the sparse ones."""
        if self.measure == "peak_gpu_memory":
            return self.methods
        if self.measure == "failing_cell":
            return self.methods[1:]
        return self.methods[:-1] if self.measure in _AGAINST_LAST else self.methods[:1]

    @property
    def ablation(self) -> str:
        """The ablation whose runs are evidence."""
        return "regimes" if self.measure in ("train_test_gap", "failing_cell") else HEADLINE

    def settings_in(self, runs: pd.DataFrame) -> list[str]:
        """Settings among runs of its condition that the claim is judged in; a task without runs by its name."""
        return [name for task in self.tasks for name in list(pd.unique(runs.loc[runs["task"] == task, "setting"])) or [task]]

    def of_condition(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Those of the runs that were made under the claim's condition, or have none."""
        return runs[runs["asides"].isna() | (runs["asides"] == self.asides)]

    def in_cell(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Those of the runs that have the claim's values of config fields."""
        for name, value in self.cell.items():
            runs = runs[runs[name] == value]
        return runs

    def needs(self, config: Any) -> bool:
        """Whether a run with this config is evidence for the claim, apart from the ablation that planned it."""
        if config.task not in self.tasks or config.asides not in (None, self.asides):
            return False
        if config.method not in (*self.methods, "base"):
            return False
        if config.method == "base":
            return True
        if self.measure == "failing_cell" and config.seed < NEW_SEED:  # a screening picks cells and proves nothing
            return False
        return all(getattr(config, name) == value for name, value in self.cell.items())

    def holds(self, low: float, high: float) -> bool | None:
        """The rule on a 95 % interval; None where the interval leaves it open or does not exist."""
        t, upper = self.threshold, self.upper or 0.0
        if low != low or high != high:
            return None
        if self.rule == "above":
            return True if low > t else False if high <= t else None
        if self.rule == "below":
            return True if high < t else False if low >= t else None
        if self.rule == "between":
            return True if t <= low and high <= upper else False if high < t or low > upper else None
        if not low <= t <= high:
            return False
        return True if (high - low) / 2 <= (self.resolution or 0.0) else None

    @property
    def rule_text(self) -> str:
        """The rule in words, for tables."""
        words = {
            "above": f"above {self.threshold:g} {self.unit}",
            "below": f"below {self.threshold:g} {self.unit}",
            "between": f"between {self.threshold:g} and {self.upper or 0:g} {self.unit}",
            "agrees": f"contains {self.threshold:g} {self.unit} and is at most {2 * (self.resolution or 0):g} wide",
        }[self.rule]
        subject = "the most any run held" if self.measure == "peak_gpu_memory" else "95 % interval"
        more = {
            "regularisation": ", and less KL to base or a smaller train-test gap",
            "failing_cell": f" in a cell where that of {METHOD_LABELS[self.methods[0]]} is below {self.fails_under or 0:g} points",
        }
        return f"{subject} {words}{more.get(self.measure, '')}"


def load_claims(source: str | PathLike[str] | Mapping[str, Any] | Sequence[Any]) -> list[Claim]:
    """Claims from a YAML file, from its parsed content (mapping or list), or from Claim objects; order is kept.

    Raises:
        UserError: the file cannot be read or is no YAML, there is no list of claims, a claim has a field that is unknown or does
            not fit, or an id occurs twice.
    """
    content: Any = source
    if isinstance(source, str | PathLike):
        try:
            content = yaml.safe_load(Path(source).read_text("utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the claims file {source}: {error.strerror}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # values: not UTF-8, an impossible date
            raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    content = content.get("claims") if isinstance(content, Mapping) else content
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise UserError("claims need a list under the key `claims`")
    claims = [claim if isinstance(claim, Claim) else _parse(claim, number) for number, claim in enumerate(content, start=1)]
    (name, count), *_ = Counter(claim.id for claim in claims).most_common(1) or [("", 0)]
    if count > 1:
        raise UserError(f"claim id {name} occurs {count} times: give each claim its own")
    return claims


def _parse(claim: Any, number: int) -> Claim:
    try:
        return Claim.model_validate(claim)
    except ValidationError as error:
        first = error.errors()[0]
        name = claim.get("id") if isinstance(claim, Mapping) else None
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"claim {name or f'number {number}'}{': ' + where if where else ''}: {first['msg']}") from None
