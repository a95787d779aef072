"""The plan of each ablation: a list of configs. Plans share runs, since a run is named by its config alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from replication.config import FIELDS_OF_A_METHOD, ExperimentConfig, load_profile, profile_plan
from replication.errors import UserError
from replication.names import ABLATIONS, HEADLINE, NEW_SEED, TRAINED, TUNING_SEED


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
    """The planned runs of some ablations (default: all that the profile has) under a profile, the headline first.

    Args:
        profile: smoke, nano, small or paper.
        names: of ABLATIONS.
        variant: "default", or "full" with more seeds and finer grids.
        seeds: number of seeds of the headline comparison, instead of the profile's.
        task: the one task of every ablation, instead of the profile's; a file of problems (``data``) means task jsonl.
        methods: rules of one's own, package.module:object, that take part in the headline comparison.
        rates: how many learning rates the ablation learning_rate tries: those nearest to the headline's.
        overrides: fields set in every config (a model, a data file); ``svamp_source`` only where the task is svamp, and a setting
            of one method, such as ``cutoff``, only in that method's runs. With a ``learning_rate`` nothing is left to tune, so the
            plan has no ablation learning_rate.

    Raises:
        UserError: unknown profile, ablation, variant or field; a setting of a method that the plan does not train.
    """
    grid = _grid(profile, variant, task or ("jsonl" if overrides.get("data") else None))
    grid["methods"] = (*TRAINED, *methods)
    known = [name for name in ABLATIONS if name == HEADLINE or name in grid]
    if "learning_rate" in overrides:
        if names and "learning_rate" in names:
            raise UserError("learning_rate is set: leave it out to try several, or leave out the ablation learning_rate")
        known = [name for name in known if name != "learning_rate"]
    names = known if names is None else names
    for name in names:
        if name not in ABLATIONS:
            raise UserError(f"unknown ablation {name!r}: choose one of {', '.join(ABLATIONS)}")
        if name not in known:
            raise UserError(f"profile {profile} has no ablation {name}: choose one of {', '.join(known)}")
    for name in ("method", "seed"):
        if name in overrides:
            raise UserError(f"{name} cannot be set for a whole plan: it is what the runs of the plan differ in")
    for name, count in (("seeds", seeds), ("rates", rates)):
        if count is not None and count < 1:
            raise UserError(f"{name} must be 1 or more, not {count}")
    if seeds is not None:
        grid["seeds"] = seeds
    if rates is not None:
        grid["learning_rate"] = grid["learning_rate"] | {"rates": rates}

    own_settings = {name: owner for owner, names in FIELDS_OF_A_METHOD.items() for name in names if name in overrides}

    def config(method: str, seed: int, setting: dict[str, Any], **values: Any) -> ExperimentConfig:
        fields = setting | values | overrides
        if method == "base":
            fields["steps"] = 0  # it is not trained, whatever number of steps is set for the others
        if fields["task"] != "svamp":
            fields.pop("svamp_source", None)
        for name in own_settings:
            if own_settings[name] != method:
                fields.pop(name, None)
        return load_profile(profile, method=method, seed=seed, **fields)

    planned = [PlannedRun(name, found) for name in names for found in _PLANS[name](config, grid, grid.get(name) or {})]
    for name, owner in own_settings.items():
        if all(run.config.method != owner for run in planned):
            raise UserError(f"{name} is a setting of {owner} alone, which this plan does not train: leave it out")
    return list({(run.ablation, run.config): run for run in planned}.values())


def _grid(profile: str, variant: str, task: str | None) -> dict[str, Any]:
    """The profile's plan, with the parts that a variant changes laid over it, and ``task`` in place of its tasks.

    ``settings`` of the whole plan and of its parts are lists of fields: a task, and for word problems their asides.
    """
    whole = profile_plan(profile)
    if variant not in ("default", "full"):
        raise UserError(f"unknown plan {variant!r}: choose default or full")
    grid = {name: value for name, value in whole.items() if name != "full"}
    for name, value in (whole.get("full") or {}).items() if variant == "full" else ():
        grid[name] = {**grid.get(name, {}), **value} if isinstance(value, dict) else value
    if task is not None:
        settings = [{"task": task}]
        grid["settings"] = settings
        parts = {name: part for name, part in grid.items() if isinstance(part, dict) and "settings" in part}
        grid |= {name: {**part, "settings": settings} for name, part in parts.items()}
    return grid


#: Makes a config from method, seed, a setting and further fields.
Make = Callable[..., ExperimentConfig]
#: Runs outside the headline are evaluated on what their comparison needs.
_BRIEF = {"extra_splits": "never"}


def _full_vs_sparse(make: Make, grid: dict[str, Any], section: dict[str, Any]) -> Iterator[ExperimentConfig]:
    """Base, the three methods and those of one's own in every setting, each at its tuned learning rate; PPO with fewer seeds."""
    for setting in grid["settings"]:
        yield make("base", 0, setting)
    for seed in range(grid["seeds"]):
        for setting in grid["settings"]:
            for method in grid["methods"]:
                yield make(method, seed, setting)
        for setting in section.get("ppo", {}).get("settings", ()):
            if seed < section["ppo"]["seeds"]:
                yield make("ppo", seed, setting)


def _token_fraction(make: Make, grid: dict[str, Any], section: dict[str, Any]) -> Iterator[ExperimentConfig]:
    """Other choices of tokens than S-GRPO's rule, each at its own learning rate; and GRPO, S-GRPO and T-SPMO themselves.

    Each point of ``points`` names its fields. It is run at the rates of ``grid`` with the tuning seed, and with the seeds of the
    headline at its own ``learning_rate``; without that field at the method's.
    """
    points = [(point.get("method", "s_grpo"), {k: v for k, v in point.items() if k != "method"}) for point in section["points"]]
    for setting in section["settings"]:
        for seed in range(min(grid["seeds"], section.get("seeds", grid["seeds"]))):
            for method in TRAINED:
                yield make(method, seed, setting)
            for method, fields in points:
                yield make(method, seed, setting, **fields, **_BRIEF)
        for method, fields in points:
            for rate in section.get("grid", ()):
                yield make(method, TUNING_SEED, setting, **(fields | {"learning_rate": rate}), **_BRIEF)


def _learning_rate(make: Make, grid: dict[str, Any], section: dict[str, Any]) -> Iterator[ExperimentConfig]:
    """The same grid for every method: the budget with which each is tuned, and whether one rate settles a claim.

    ``methods`` are further methods and ``neighbours`` further settings, for which only the method's own rate and the two beside
    it are tried, with one seed.
    """
    settings = section.get("settings", grid["settings"])
    tried = [(setting, method, section["seeds"], section.get("rates")) for setting in settings for method in TRAINED]
    tried += [(setting, method, 1, 3) for setting in settings for method in section.get("methods", ())]
    tried += [(setting, method, 1, 3) for setting in section.get("neighbours", ()) for method in TRAINED]
    for setting, method, seeds, nearest in tried:
        # A reader's own task has no grid of its own: the first stands for it.
        rates = section["grids"].get(setting["task"]) or next(iter(section["grids"].values()))
        near = rates if nearest is None else _nearest(rates, make(method, 0, setting).learning_rate, nearest)
        for seed in range(TUNING_SEED, TUNING_SEED + seeds):
            for learning_rate in near:
                yield make(method, seed, setting, learning_rate=learning_rate, **_BRIEF)


def _nearest(rates: Sequence[float], rate: float, count: int) -> list[float]:
    """The ``count`` of the rates whose ratio to ``rate`` is least, in ascending order."""
    return sorted(sorted(rates, key=lambda other: abs(math.log(other / rate)))[:count])


def _lora_rank(make: Make, grid: dict[str, Any], section: dict[str, Any]) -> Iterator[ExperimentConfig]:
    """Every method at every rank, alpha / rank fixed at the profile's, at each rate of ``grid`` (rank 0, full fine-tuning: of
    ``grid_without_adapter``) with every seed; the tables choose. At the profile's own rank and the method's own rate it is the
    headline run.
    """
    for setting in section["settings"]:
        for method in TRAINED:
            default = make(method, 0, setting)
            scale = default.lora_alpha / max(default.lora_rank, 1)
            for rank in section["ranks"]:
                rates = section["grid"] if rank else section["grid_without_adapter"]
                for seed in range(min(grid["seeds"], section.get("seeds", grid["seeds"]))):
                    for learning_rate in rates:
                        config = make(method, seed, setting, learning_rate=learning_rate, lora_rank=rank, **_BRIEF)
                        # An override may set rank and rate themselves, the rank to 0 for one.
                        if (config.lora_rank, config.learning_rate) == (default.lora_rank, default.learning_rate):
                            yield make(method, seed, setting)
                        else:
                            yield config.model_copy(update={"lora_alpha": config.lora_rank * scale}) if config.lora_rank else config


def _regimes(make: Make, grid: dict[str, Any], section: dict[str, Any]) -> Iterator[ExperimentConfig]:
    """Where full-token GRPO fails to improve: cells of prompts a step, G, normalisation and training set, and overfitting.

    ``screen`` runs GRPO in every cell at each of its ``rates`` with the tuning seed. ``confirm`` lists cells that failed, each with
    the learning rate of every method: run with ``new_seeds`` new seeds. ``overfit`` lists few training items and many steps.
    """
    for setting in section["settings"]:
        yield make("base", 0, setting)
        for cell in _cells(section.get("screen", {}).get("cells", {})):
            for rate in section["screen"]["rates"]:
                yield make("grpo", TUNING_SEED, setting, learning_rate=rate, **cell, **_BRIEF)
        for confirmed in section.get("confirm", ()):
            for method, rate in confirmed["learning_rate"].items():
                for seed in range(NEW_SEED, NEW_SEED + section["new_seeds"]):
                    yield make(method, seed, setting, learning_rate=rate, **confirmed["cell"], **_BRIEF)
        for few in section.get("overfit", ()):
            for seed in range(few["seeds"]):
                for method in TRAINED:
                    yield make(method, seed, setting, train_items=few["train_items"], steps=few["steps"], extra_splits="always")


def _cells(axes: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes' values; a value that is a mapping stands for several fields."""
    cells: list[dict[str, Any]] = [{}] if axes else []
    for name, values in axes.items():
        cells = [cell | (value if isinstance(value, dict) else {name: value}) for cell in cells for value in values]
    yield from cells


def _replay(make: Make, grid: dict[str, Any], section: dict[str, Any]) -> Iterator[ExperimentConfig]:
    """T-SPMO with replays and without."""
    for setting in section["settings"]:
        for seed in range(min(grid["seeds"], section["seeds"])):
            yield make("t_spmo", seed, setting)
            yield make("t_spmo", seed, setting, **section["replays"], **_BRIEF)


_PLANS = {
    "full_vs_sparse": _full_vs_sparse,
    "token_fraction": _token_fraction,
    "lora_rank": _lora_rank,
    "learning_rate": _learning_rate,
    "regimes": _regimes,
    "replay": _replay,
}
