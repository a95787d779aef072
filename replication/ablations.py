"""The plan of each ablation: a list of configs. Plans share runs, since a run is named by its config alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from replication.config import ExperimentConfig, load_profile, profile_plan
from replication.errors import UserError
from replication.names import ABLATIONS, HEADLINE, TRAINED


@dataclass(frozen=True)
class PlannedRun:
    """One run of one ablation; the same config may be planned by several."""

    ablation: str
    config: ExperimentConfig


def plan(
    profile: str,
    names: Sequence[str] | None = None,
    *,
    variant: str = "default",
    seeds: int | None = None,
    task: str | None = None,
    methods: Sequence[str] = (),
    rates: int | None = None,
    **overrides: Any,
) -> list[PlannedRun]:
    """The planned runs of some ablations (default: all that the profile has) under a profile.

    Args:
        profile: smoke, nano, small or paper.
        names: of ABLATIONS.
        variant: "default", or "full" with more seeds and finer grids.
        seeds: number of seeds of the headline comparison, instead of the profile's.
        task: the one task of every ablation, instead of the profile's; a file of problems (``data``) means task jsonl.
        methods: rules of one's own, package.module:object, that take part in the headline comparison.
        rates: how many learning rates the ablation learning_rate tries: those nearest to the headline's.
        overrides: fields set in every config (a model, a data file).

    Raises:
        UserError: unknown profile, ablation, variant or field.
    """
    grid = _grid(profile, variant, task or ("jsonl" if overrides.get("data") else None)) | {"methods": (*TRAINED, *methods)}
    known = [name for name in ABLATIONS if name == HEADLINE or name in grid]
    names = known if names is None else names
    for name in names:
        if name not in ABLATIONS:
            raise UserError(f"unknown ablation {name!r}: choose one of {', '.join(ABLATIONS)}")
        if name not in known:
            raise UserError(f"profile {profile} has no ablation {name}: choose one of {', '.join(known)}")
    for name in ("method", "seed"):
        if name in overrides:
            raise UserError(f"{name} cannot be set for a whole plan: it is what the runs of the plan differ in")
    if seeds is not None:
        if seeds < 1:
            raise UserError(f"seeds must be 1 or more, not {seeds}")
        grid["seeds"] = seeds
    if rates is not None:
        if rates < 1:
            raise UserError(f"rates must be 1 or more, not {rates}")
        grid["learning_rate"] = grid["learning_rate"] | {"rates": rates}
    planned = [PlannedRun(name, config) for name in names for config in _PLANS[name](profile, grid, overrides)]
    return list({(run.ablation, run.config): run for run in planned}.values())


def _grid(profile: str, variant: str, task: str | None) -> dict[str, Any]:
    """The profile's plan, with the parts that a variant changes laid over it, and ``task`` in place of its tasks."""
    section = profile_plan(profile)
    if variant not in ("default", "full"):
        raise UserError(f"unknown plan {variant!r}: choose default or full")
    grid = {name: value for name, value in section.items() if name != "full"}
    for name, value in (section.get("full") or {}).items() if variant == "full" else ():
        grid[name] = {**grid[name], **value} if isinstance(value, dict) else value
    if task is not None:
        grid["tasks"] = [task]
        grid |= {name: {**part, "task": task} for name, part in grid.items() if isinstance(part, dict) and "task" in part}
    return grid


def _full_vs_sparse(profile: str, grid: dict[str, Any], overrides: dict[str, Any]) -> Iterator[ExperimentConfig]:
    """Base, the three methods and those of one's own on every task, each at its tuned learning rate."""
    for task in grid["tasks"]:
        # Nothing is trained, whatever number of steps is set for the others.
        yield load_profile(profile, task=task, method="base", **(overrides | {"steps": 0}))
        for method in grid["methods"]:
            for seed in range(grid["seeds"]):
                yield load_profile(profile, task=task, method=method, seed=seed, **overrides)


def _token_fraction(profile: str, grid: dict[str, Any], overrides: dict[str, Any]) -> Iterator[ExperimentConfig]:
    """S-GRPO's rule with more and fewer tokens, controls that pick as many by another rule, and both ends: GRPO and T-SPMO.

    All at the learning rates of the headline runs; and S-GRPO once more with the other denominator.
    """
    own = grid["token_fraction"]
    for seed in range(min(grid["seeds"], own.get("seeds", grid["seeds"]))):
        for method in TRAINED:
            yield load_profile(profile, task=own["task"], method=method, seed=seed, **overrides)
        points = [{"keep_probability": p, "max_kept_tokens": None} for p in own["keep_probabilities"]]
        points += [{"selector": s, "token_share": share} for s in own.get("selectors", ()) for share in own["shares"]]
        points += [{"denominator": denominator} for denominator in own.get("denominators", ())]
        for point in points:
            yield load_profile(profile, task=own["task"], method="s_grpo", seed=seed, **(point | overrides))


def _learning_rate(profile: str, grid: dict[str, Any], overrides: dict[str, Any]) -> Iterator[ExperimentConfig]:
    """The same grid for every method: the small budget with which each is tuned, and whether one rate settles a claim."""
    own = grid["learning_rate"]
    for task in grid["tasks"]:
        for method in TRAINED:
            tried = own["grid"]
            if "rates" in own:
                tried = _nearest(tried, load_profile(profile, task=task, method=method).learning_rate, own["rates"])
            for learning_rate in tried:
                for seed in range(own["seeds"]):
                    values = {"learning_rate": learning_rate} | overrides
                    yield load_profile(profile, task=task, method=method, seed=seed, **values)


def _nearest(rates: Sequence[float], rate: float, count: int) -> list[float]:
    """The ``count`` of the rates whose ratio to ``rate`` is least, in ascending order."""
    return sorted(sorted(rates, key=lambda other: abs(math.log(other / rate)))[:count])


def _lora_rank(profile: str, grid: dict[str, Any], overrides: dict[str, Any]) -> Iterator[ExperimentConfig]:
    """Every method at every rank, alpha / rank fixed at the profile's, the learning rate tuned for each rank.

    Rank 0 is full fine-tuning. A rank with a list of rates under ``grids`` is run at each of them with every seed. Any other is
    tuned with the first seed, and the other seeds run at its rate under ``chosen`` (not given: that of the profile).
    """
    own = grid["lora_rank"]
    seeds = range(min(grid["seeds"], own.get("seeds", grid["seeds"])))
    for method in TRAINED:
        default = load_profile(profile, task=own["task"], method=method, **overrides)
        for rank in own["ranks"]:
            values = {"lora_rank": rank} | overrides
            if values["lora_rank"]:
                values["lora_alpha"] = values["lora_rank"] * default.lora_alpha / default.lora_rank
            rates: dict[float, range] = {}
            if rank in own.get("grids", {}):
                rates = dict.fromkeys(own["grids"][rank], seeds)
            else:
                if rank != default.lora_rank:
                    rates = dict.fromkeys(own["grid"] if rank else own["grid_without_adapter"], range(1))
                rates[(own["chosen"].get(rank) or {}).get(method, default.learning_rate)] = seeds
            for learning_rate, under in rates.items():
                for seed in under:
                    setting = {"learning_rate": learning_rate} | values
                    yield load_profile(profile, task=own["task"], method=method, seed=seed, **setting)


_PLANS = {
    "full_vs_sparse": _full_vs_sparse,
    "token_fraction": _token_fraction,
    "lora_rank": _lora_rank,
    "learning_rate": _learning_rate,
}
