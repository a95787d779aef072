"""Check that the data, the model and the GPU of a plan are there before anything starts. One message names all that is missing.

The configs decide (device, model, task), not the name of the profile. A plan on the shipped base needs nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from replication.base_files import check_gguf, is_gguf
from replication.checks import check_enough
from replication.errors import UserError
from replication.names import CLAIMS
from replication.runs import read_summary
from replication.statistics import SCALE_MODELS, counts_for, load_claims
from replication.tasks import get_task, is_made_up

if TYPE_CHECKING:
    from replication.config import ExperimentConfig

#: A folder with fewer bytes of weights runs on a CPU if device=auto finds no GPU.
SMALL_MODEL = 2**29
#: Seconds to wait for the Hub's answer.
HUB_TIMEOUT = 5.0
_MODEL_ADVICE = "with make: MODEL=folder, file.gguf or name on the Hub (and REVISION=), or run once where the Hub can be reached"


def check_needs(configs: Sequence[ExperimentConfig], runs_dir: str | Path | None = None, *, here: bool = True) -> None:
    """Raise unless everything that these runs need is there.

    Args:
        configs: the runs of a plan; a run that is finished under ``runs_dir`` needs no model and no GPU.
        runs_dir: the folder of run directories; None: all are still to be run.
        here: whether they run on this machine. For a cluster only data and model are looked at.

    Raises:
        UserError: one message that names everything missing and how to supply it.
    """
    configs = list(dict.fromkeys(configs))
    demanding = [c for c in configs if c.model != "nano" or c.device != "cpu" or c.task == "svamp"]
    problems = _data_problems([config for config in demanding if config.task == "svamp"])
    if not problems and runs_dir is not None:  # a run id covers the data: it is known only if they are there
        demanding = unfinished(demanding, Path(runs_dir))
    problems += _too_few([config for config in configs if config.data is not None])
    problems += _model_problems(config for config in demanding if config.model != "nano")
    if here and (problem := gpu_problem(demanding, _no_gpu())) and not torch.cuda.is_available():
        problems.append(problem)
    if problems:
        numbered = "; ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
        raise UserError(f"these runs cannot start, and none was started: {numbered}")


def _no_gpu() -> str:
    """Why torch sees no GPU, as far as that can be told without one."""
    if shutil.which("nvidia-smi") is None:
        return "torch sees none"
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build for the CPU"
    return f"this torch ({built}) sees none, although nvidia-smi is here (docs/your-gpu.md: which torch a GPU needs)"


def uncounted_claims(configs: Sequence[ExperimentConfig]) -> str | None:
    """A line on the claims that these runs cannot support because of their model; None if there are none."""
    if not CLAIMS.exists():  # an installed package judges no claims
        return None
    for profile, model in dict.fromkeys((config.profile, config.model) for config in configs):
        ids = [claim.id for claim in load_claims(CLAIMS) if claim.scale == profile]
        if ids and not counts_for(profile, model):
            return f"MODEL={model} is not named {SCALE_MODELS[profile]}: claims {ids[0]} to {ids[-1]} will stay not run"
    return None


def gpu_problem(configs: Sequence[ExperimentConfig], none: str) -> str | None:
    """A message on the GPU that these runs need, in which ``none`` says where there is none; None if they need no GPU."""
    wanting = [c for c in configs if c.device.startswith("cuda") or (c.device == "auto" and weight_bytes(c) >= SMALL_MODEL)]
    if not wanting:
        return None
    if all(config.device != "auto" for config in wanting):
        return f"GPU: {none}, and device={wanting[0].device} was asked for: set device=auto or device=cpu"
    return (
        f"GPU: {none}, and {wanting[0].model} is too large for a CPU: use a machine with a CUDA GPU, "
        "or MODEL=folder of a small model, or --set device=cpu to try all the same"
    )


def _data_problems(configs: Sequence[ExperimentConfig]) -> list[str]:
    problems = []
    for source in dict.fromkeys(config.svamp_source for config in configs):
        try:
            task = get_task("svamp", source=source)
        except UserError as error:
            problems.append(f"SVAMP data: {error}; with make: SVAMP=path/to/SVAMP.json")
            continue
        if is_made_up(task) and not all(_is_dry_run(config) for config in configs if config.svamp_source == source):
            problems.append(f"SVAMP data: the items of {source} are made up for dry runs: give the official file with SVAMP=")
    return problems


def _too_few(configs: Sequence[ExperimentConfig]) -> list[str]:
    """The runs that their file of problems is too small for, each kind once."""
    kinds = {(config.data, config.train_items, config.prompts_per_step, config.steps > 0): config for config in configs}
    problems = []
    for config in kinds.values():
        try:
            check_enough(config, config.load_task())
        except UserError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _is_dry_run(config: ExperimentConfig) -> bool:
    """Whether the model's config says that it is the random one of a dry run."""
    path = Path(config.model_path) / "config.json"
    return path.exists() and bool(json.loads(path.read_text()).get("dry_run"))


def unfinished(configs: Iterable[ExperimentConfig], runs_dir: Path) -> list[ExperimentConfig]:
    """The runs without a summary under ``runs_dir``, and those that have no run id because their model is missing.

    A model is tried once: each try can wait for the Hub.
    """
    found, lost = [], set()
    for config in configs:
        try:
            if config.model not in lost and read_summary(runs_dir / config.run_id) is not None:
                continue
        except UserError:
            lost.add(config.model)
        found.append(config)
    return found


def _model_problems(configs: Iterable[ExperimentConfig]) -> list[str]:
    """What each model lacks. Weights are looked for, not loaded."""
    problems = []
    for path, revision in dict.fromkeys((config.model_path, config.revision) for config in configs):
        try:
            if is_gguf(path):
                check_gguf(path)
                continue
            names = _files_of(path, revision)
        except (OSError, ValueError, ImportError) as error:
            problems.append(f"model weights and tokenizer: {error}; {_MODEL_ADVICE}")
            continue
        parts = {
            "config.json": "config.json" in names,
            "*.safetensors weights": any(name.endswith(".safetensors") for name in names),
            "tokenizer": bool(names & {"tokenizer.json", "vocab.json", "tokenizer.model"}),
        }
        if lacks := [part for part, found in parts.items() if not found]:
            problems.append(f"model: {path} has no {' and no '.join(lacks)}; {_MODEL_ADVICE}")
    return problems


def _files_of(path: str, revision: str | None) -> set[str]:
    """The names of a model's files: in a folder, on the Hub, or in its cache."""
    if Path(path).is_dir():
        return {entry.name for entry in Path(path).iterdir()}
    if Path(path).is_absolute() or path.startswith("."):
        raise FileNotFoundError(f"there is no folder {path}")
    from huggingface_hub import HfApi, snapshot_download

    # The client's errors have no common base: no network, offline mode, no such name, no access.
    try:
        return {file.rfilename for file in HfApi().model_info(path, revision=revision, timeout=HUB_TIMEOUT).siblings or ()}
    except Exception as error:
        reason = type(error).__name__
    try:
        return {entry.name for entry in Path(snapshot_download(path, revision=revision, local_files_only=True)).iterdir()}
    except Exception:
        raise FileNotFoundError(f"{path} is no folder, is not in the cache, and the Hub gives none ({reason})") from None


def weight_bytes(config: ExperimentConfig) -> float:
    """Bytes of a model's weights on this disk in 16 bits; infinite for a name on the Hub."""
    path = Path(config.model_path)
    if is_gguf(config.model_path) and path.is_file():
        return 4 * path.stat().st_size  # 4 bits a weight become 16
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else float("inf")
