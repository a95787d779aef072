"""The model card of a trained run: README.md beside the weights, in the form that PEFT and the Hub read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from replication.base_files import is_gguf

if TYPE_CHECKING:
    from replication.config import ExperimentConfig

_LICENCE_OF_BASE = "The licence is that of the base model."
#: Further fields of the config that the card shows; fields that are not set are left out.
_SETTINGS = ("learning_rate", "prompts_per_step", "group_size", "temperature", "max_new_tokens", "lora_rank", "lora_alpha")
_SETTINGS += ("lora_targets", "selector", "cutoff", "keep_probability", "max_kept_tokens", "beta", "l2", "dtype", "prompt_template")


def base_name(config: ExperimentConfig) -> str:
    """Where others find the base: its name on the Hub, its folder or GGUF file; for the shipped one its folder here."""
    return "data/nano-base" if config.model == "nano" else config.model


def model_card(config: ExperimentConfig, manifest: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The card of a finished run as Markdown with a YAML header.

    Args:
        config: the run's own.
        manifest: where the run comes from (manifest.json).
        summary: what came out (the fields of summary.json); accuracies that are None are left out, since they were not measured.
    """
    adapter = config.lora_rank > 0
    header: dict[str, Any] = {"base_model": base_name(config), "library_name": "peft" if adapter else "transformers"}
    header |= {"pipeline_tag": "text-generation", "tags": ["lora"] * adapter + [config.method, config.task]}
    facts = {
        "base": base_name(config),
        "revision asked for": config.revision,
        "commit of the base": manifest.get("model_commit"),
        "sha256 of the base's files": _checksum(manifest.get("base_sha256")),
        "task": config.task,
        "asides": config.asides,
        "digits": config.digits if config.task == "multiplication" else None,
        "version of the task": manifest.get("task_version"),
        "method": config.method,
        "seed": config.seed,
        "optimizer steps": f"{summary.get('steps_done')} of {config.steps}",
        "status": summary.get("status"),
        "test accuracy (greedy)": _share(summary.get("accuracy"), summary.get("n_items")),
        "validation accuracy (greedy)": _share(summary.get("validation_accuracy")),
        "run": manifest.get("run_id"),
        "code": f"commit {manifest.get('commit')}" + ", with uncommitted changes" * bool(manifest.get("dirty")),
    }
    facts |= {name: _plain(getattr(config, name)) for name in _SETTINGS}
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value not in (None, ""))
    packages = ", ".join(f"{name} {version}" for name, version in (manifest.get("packages") or {}).items() if version)
    what = "A LoRA adapter" if adapter else "A causal language model"
    fits = ""
    if adapter and is_gguf(config.model):
        fits = (
            f"It fits the weights of the one file `{Path(config.model).name}` (its sha256 is below), dequantised by transformers. "
            "On another quantisation of the same model it was not measured.\n\n"
        )
    return (
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n"
        f"# {config.method} on {config.task}, seed {config.seed}\n\n"
        f"{what} from one run of a replication of Token-Efficient RL for LLM Reasoning (Lee & Tong, arXiv 2504.20834). "
        f"{_LICENCE_OF_BASE}\n\n{fits}"
        f"| | |\n|---|---|\n{rows}\n\n"
        f"```python\n{_usage(config)}```\n\n"
        f"Made by:\n\n```sh\n{manifest.get('command')}\n```\n\n"
        f"With {packages}.\n"
    )


def _usage(config: ExperimentConfig) -> str:
    if is_gguf(config.model):
        base, more = str(Path(config.model).parent), f", gguf_file={Path(config.model).name!r}"
    else:
        base, more = base_name(config), f", revision={config.revision!r}" if config.revision else ""
    where = "  # in a clone of the replication" if config.model == "nano" else ""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    if config.lora_rank:
        lines = ["from peft import PeftModel", *lines]
        lines += [f"base = AutoModelForCausalLM.from_pretrained({base!r}{more}){where}"]
        lines += ['model = PeftModel.from_pretrained(base, "PATH OF THIS FOLDER")']
    else:
        lines += ['model = AutoModelForCausalLM.from_pretrained("PATH OF THIS FOLDER")']
    # The tokenizer is the base's, and is not saved again.
    return "\n".join([*lines, f"tokenizer = AutoTokenizer.from_pretrained({base!r}{more})", ""])


def _checksum(fingerprint: str | None) -> str | None:
    # Of a model on the Hub the fingerprint is its name, which stands in the card already.
    return None if fingerprint is None or "@" in fingerprint else fingerprint


def _share(value: float | None, items: int | None = None) -> str | None:
    return None if value is None else f"{value:.3f}" + (f" on {items} items" if items else "")


def _plain(value: Any) -> str | None:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else value
