"""Whether the largest of the missing runs fits this machine, and how long all of them take: measured before the first starts.

``warm_up`` makes a few of its optimizer steps. Where memory runs out, they are tried again with settings that bound memory and
change no number but for rounding (``choices``). The runs take the first settings that fit.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replication.console import say
from replication.errors import UserError
from replication.runs import atomic_write, cores, make_folder
from replication.sweep.pool import gpus
from replication.sweep.preflight import weight_bytes
from replication.sweep.queue import cost
from replication.sweep.warm_up import STEPS, Attempt, in_child
from replication.tasks import completion_limit

if TYPE_CHECKING:
    from replication.config import ExperimentConfig

#: A model with fewer bytes of weights, as the shipped base, is not measured: it fits everywhere.
DEMANDING = 2**25
#: Seconds that the steps of all tries together may take, without downloading and loading the model.
LIMIT = 300.0
#: The budget is not halved below this many tokens: one group of long completions has more.
LEAST_BUDGET = 1024
#: Where the last measurement lies, beside the run directories: a sweep that is started again does not measure again.
FILE = "measured.json"
#: The fields that decide memory and seconds of a step; a measurement counts for all runs that share them.
_DECIDES = ("model", "revision", "dtype", "task", "digits", "svamp_source", "data", "prompt_template")
_DECIDES += ("prompts_per_step", "group_size", "max_new_tokens", "lora_rank", "lora_targets")
_DECIDES += ("scoring", "token_budget", "sample_budget", "activation_checkpointing", "compile_sampling", "device")


@dataclass(frozen=True)
class Fit:
    """The settings that fit, and what was measured with them.

    Attributes:
        settings: fields of a config, and their values.
        answers: completions of a step.
        step_s: seconds of a step, the first left out where there are others: it also warms up. A lower bound if ``steps`` is 0.
        peak_bytes: the most that any step held; None if no step ended in time.
        steps: whole steps that were measured.
    """

    settings: dict[str, Any]
    answers: int
    step_s: float
    peak_bytes: int | None
    total_bytes: int | None
    device: str
    gpus: int
    steps: int

    @property
    def workers(self) -> int:
        """Processes at a time: one for each GPU; on a CPU one for each core, as far as the memory holds them."""
        return self.gpus or max(1, min(cores(), (self.total_bytes or 0) // self.peak_bytes if self.peak_bytes else cores()))


def is_large(config: ExperimentConfig) -> bool:
    """Whether a run's model is large enough to be measured."""
    return weight_bytes(config) >= DEMANDING


def is_demanding(config: ExperimentConfig) -> bool:
    """Whether a run trains such a model."""
    return config.steps > 0 and is_large(config)


def heaviest(configs: Iterable[ExperimentConfig]) -> ExperimentConfig:
    """The run that needs the most memory, by full fine-tuning, then tokens, then whether all are credited, then rank."""

    def weight(config: ExperimentConfig) -> tuple[Any, ...]:
        limit = config.max_new_tokens or completion_limit(config.task, config.digits)
        tokens = config.prompts_per_step * config.group_size * limit
        return config.lora_rank == 0, tokens, config.selector.startswith("all"), config.lora_rank

    return max(configs, key=weight)


def choices(config: ExperimentConfig) -> Iterator[dict[str, Any]]:
    """Settings to try: the config's own, then fewer tokens at a time (sampled and scored alike), then activation checkpointing."""
    names = ("token_budget", "sample_budget", "activation_checkpointing")
    settings = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    yield settings
    while settings["token_budget"] // 2 >= LEAST_BUDGET:
        settings = settings | {name: settings[name] // 2 for name in names[:2] if name in settings}
        yield settings
    if not config.activation_checkpointing:
        yield settings | {"activation_checkpointing": True}


def find(config: ExperimentConfig, attempt: Callable[[ExperimentConfig, float], Attempt] = in_child) -> Fit:
    """Try the ``choices`` of a config until one fits.

    Args:
        config: the heaviest of the runs.
        attempt: makes the steps within some seconds.

    Raises:
        UserError: memory runs out whatever is set, or a step fails for another reason.
    """
    left = LIMIT
    for tries, settings in enumerate(choices(config), 1):
        made = attempt(config.model_copy(update=settings), left)
        left -= made.seconds
        if made.outcome == "memory":
            say(f"out of memory with {_words(settings)}")
            if left > 0:
                continue
        if made.outcome == "memory" or (made.outcome == "time" and not made.steps and tries > 1):
            raise UserError(f"memory ran out at every setting that {LIMIT:.0f} s allowed to try: {_advice(config)}")
        if made.outcome not in ("done", "time"):
            raise UserError(f"a warm-up step with {config.model} failed, and no run was started: {made.outcome}")
        steady = [step["seconds"] for step in made.steps[1:] or made.steps]
        last = made.steps[-1] if made.steps else {"total_bytes": None, "device": config.device}
        return Fit(
            settings=settings,
            answers=config.prompts_per_step * config.group_size,
            step_s=sum(steady) / len(steady) if steady else made.seconds,
            peak_bytes=max((step["peak_bytes"] for step in made.steps), default=None),
            total_bytes=last["total_bytes"],
            device=last["device"],
            gpus=len(gpus([config])),
            steps=len(made.steps),
        )
    raise UserError(f"out of memory whatever was set, at last {_words(settings)}: {_advice(config)}")


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={str(value).lower()}" for name, value in settings.items())


def _advice(config: ExperimentConfig) -> str:
    return f"lower group_size ({config.group_size}) or max_new_tokens, choose a smaller MODEL=, or use a machine with more memory"


def fitting(configs: Sequence[ExperimentConfig], runs_dir: Path, *, measure: Callable[[ExperimentConfig], Fit] = find) -> Fit:
    """The settings that fit these runs: read from ``measured.json`` beside ``runs_dir``, or measured. One run must be demanding."""
    config = heaviest(config for config in configs if is_demanding(config))
    dumped = config.model_dump(mode="json")
    of = {name: dumped.get(name) for name in _DECIDES} | {"machine": platform.node(), "gpus": len(gpus([config]))}
    of["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")  # another card of the machine has another memory
    path = runs_dir.parent / FILE
    try:
        kept = json.loads(path.read_text())
        if kept.pop("of") == of:
            return Fit(**kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # nothing usable lies there
    say(f"measuring {STEPS} steps with the longest answers allowed, at most {LIMIT / 60:.0f} minutes")
    found = measure(config)
    if found.steps:
        make_folder(path.parent)
        atomic_write(path, json.dumps({"of": of, **dataclasses.asdict(found)}, indent=2) + "\n")
    return found


def sentences(fit: Fit, configs: Sequence[ExperimentConfig], workers: int) -> Iterator[str]:
    """What was measured, and the most hours that the missing runs take: every answer counts as the longest allowed."""
    of_a_step = f"a step of {fit.answers} answers of the greatest length"
    if fit.steps:
        memory = f" and holds {fit.peak_bytes / 1e9:.1f} of {fit.total_bytes / 1e9:.1f} GB"
        yield f"measured on {fit.device}: {of_a_step} takes {fit.step_s:.1f} s{memory}, with {_words(fit.settings)}"
    else:
        yield f"{of_a_step} takes more than the {fit.step_s:.0f} s allowed, and was stopped, with {_words(fit.settings)}"
    at_a_time = min(workers, fit.gpus or workers)  # processes that share a GPU take turns
    hours = sum(map(cost, configs)) * fit.step_s / fit.answers / at_a_time / 3600
    processes = f"{workers} process{'es' if workers > 1 else ''}"
    where = processes if fit.gpus else f"{processes} on the CPU, {max(config.threads for config in configs)} thread each"
    bound = "at most about" if fit.steps else "more than"
    note = "; answers that end earlier take less" if fit.steps else ": use a GPU, a smaller MODEL=, or fewer steps"
    yield f"{len(configs)} runs in {where}: {bound} {hours:.1f} h{note}"
