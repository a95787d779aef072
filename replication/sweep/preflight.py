"""What a plan needs, looked at before anything long begins: data, model and GPU; one message names all that is missing.

Decided by the configs alone (device, model, task), never by a profile's name. A plan on the shipped base asks for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replication.errors import UserError
from replication.names import CLAIMS
from replication.runs import read_summary
from replication.statistics import PAPER_MODEL, counts_for, load_claims
from replication.tasks import get_task, is_made_up

if TYPE_CHECKING:
    from replication.config import ExperimentConfig

#: A folder with less than these bytes of weights runs on a CPU if device=auto finds no GPU.
SMALL_MODEL = 2**29
#: Seconds to wait for the Hub's answer.
HUB_TIMEOUT = 5.0


def require(configs: Sequence[ExperimentConfig], runs_dir: str | Path | None = None, *, here: bool = True) -> None:
    """Raise unless everything that these runs need is there.

    Args:
        configs: the runs of a plan; those whose directory under ``runs_dir`` is finished need no model and no GPU.
        runs_dir: the folder of run directories; None: all are still to be run.
        here: whether they run on this machine; of a cluster this one's GPU says nothing, so that only data and model are looked at.

    Raises:
        UserError: one message that names everything missing and the ways to supply each.
    """
    demanding = [config for config in dict.fromkeys(configs) if _is_demanding(config)]
    if not demanding:
        return
    problems = _data_problems(demanding)
    if not problems and runs_dir is not None:  # run ids cover the data, so they cannot be told before it is there
        demanding = [config for config in demanding if not _is_finished(config, Path(runs_dir))]
    models = {(config.model, config.revision): config for config in demanding}
    problems += [why for config in models.values() if (why := _model_problem(config))]
    if here and (gpu := _no_gpu(demanding)):
        problems.append(gpu)
    if problems:
        numbered = "; ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
        raise UserError(f"these runs cannot start here, nothing was begun: {numbered}")


def announce_uncounted(configs: Sequence[ExperimentConfig]) -> str | None:
    """A line on the claims that these runs cannot be evidence for, because of their model; None if there are none."""
    for profile, model in dict.fromkeys((config.profile, getattr(config, "model", "nano")) for config in configs):
        ids = [claim.id for claim in load_claims(CLAIMS) if claim.scale == profile]
        if ids and not counts_for(profile, model):
            name = "nano" if profile == "nano" else PAPER_MODEL
            return f"MODEL={model} is not named {name}: claims {ids[0]} to {ids[-1]} will stay not run"
    return None


def _is_finished(config: ExperimentConfig, runs_dir: Path) -> bool:
    try:
        return read_summary(runs_dir / config.run_id) is not None
    except UserError:  # of a model that is not there: it is about to be named with all else
        return False


def _is_demanding(config: Any) -> bool:
    return getattr(config, "model", "nano") != "nano" or config.task == "svamp" or getattr(config, "device", "cpu") != "cpu"


def _data_problems(configs: Sequence[ExperimentConfig]) -> list[str]:
    problems = []
    for source in dict.fromkeys(config.svamp_source for config in configs if config.task == "svamp"):
        try:
            task = get_task("svamp", source=source)
        except UserError as error:
            problems.append(f"SVAMP data: {error}; with make: SVAMP=path/to/SVAMP.json")
            continue
        stand_in = next((c for c in configs if c.svamp_source == source and c.task == "svamp" and not _is_dry_run(c)), None)
        if stand_in and is_made_up(task):
            problems.append(f"SVAMP data: the items of {source} are made up for dry runs: give the official file with SVAMP=")
    return problems


def _is_dry_run(config: ExperimentConfig) -> bool:
    """Whether the model says of itself that it is the random one of a dry run."""
    try:
        return bool(json.loads((Path(config.model_path) / "config.json").read_text()).get("dry_run"))
    except (OSError, ValueError, AttributeError):
        return False


def _model_problem(config: ExperimentConfig) -> str | None:
    """Why the model cannot be read, or None. Weights are looked for, not loaded."""
    path = config.model_path
    advice = "with make: MODEL=folder or MODEL=name on the Hub (and REVISION=), or run once where the Hub can be reached"
    if Path(path).is_dir():
        there = {entry.name for entry in Path(path).iterdir()}
        lacks = [what for what, found in _parts(there).items() if not found]
        return f"model: {path} has no {' and no '.join(lacks)}; {advice}" if lacks else None
    if Path(path).is_absolute() or path.startswith("."):
        return f"model weights and tokenizer: there is no folder {path}; {advice}"
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(path, revision=config.revision, timeout=HUB_TIMEOUT)
        there = {sibling.rfilename for sibling in info.siblings or ()}
        where = "on the Hub"
    except Exception as error:  # the client has no common base for: no network, offline mode, no such name, no access
        try:
            cached = Path(snapshot_download(path, revision=config.revision, local_files_only=True))
        except Exception:
            reason = f"the Hub gives none ({type(error).__name__})"
            return f"model weights and tokenizer: {path} is no folder, is not in the cache, and {reason}; {advice}"
        there = {entry.name for entry in cached.iterdir()}
        where = "in the cache"
    lacks = [what for what, found in _parts(there).items() if not found]
    return f"model: {path} has no {' and no '.join(lacks)} {where}; {advice}" if lacks else None


def _parts(names: set[str]) -> dict[str, bool]:
    return {
        "config.json": "config.json" in names,
        "*.safetensors weights": any(name.endswith(".safetensors") for name in names),
        "tokenizer": bool(names & {"tokenizer.json", "vocab.json", "tokenizer.model"}),
    }


def _no_gpu(configs: Sequence[ExperimentConfig]) -> str | None:
    problem = gpu_problem(configs, "torch sees none")
    if problem is None:
        return None
    import torch

    return None if torch.cuda.is_available() else problem


def gpu_problem(configs: Sequence[ExperimentConfig], none: str) -> str | None:
    """Why these runs cannot do without a GPU, beginning with who has ``none``; None if they can."""
    wanting = [c for c in configs if c.device.startswith("cuda") or (c.device == "auto" and not _is_small(c))]
    if not wanting:
        return None
    if all(config.device != "auto" for config in wanting):
        return f"GPU: {none}, and device={wanting[0].device} was asked for: set device=auto or device=cpu"
    return (
        f"GPU: {none}, and {wanting[0].model} is too large for a CPU: use a machine with one CUDA GPU (24 GB are aimed "
        "at), or MODEL=folder of a small model, or --set device=cpu to try all the same"
    )


def _is_small(config: ExperimentConfig) -> bool:
    folder = Path(config.model_path)
    return folder.is_dir() and sum(path.stat().st_size for path in folder.glob("*.safetensors")) < SMALL_MODEL
