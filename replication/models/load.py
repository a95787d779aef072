"""Loading a causal LM with its tokenizer and attaching the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from replication.config import ExperimentConfig
from replication.console import quiet_libraries
from replication.errors import UserError
from replication.models.card import base_name
from replication.randomness import stream


@dataclass(frozen=True)
class Policy:
    """The model that is trained, what of it is trained, and what it started from.

    Attributes:
        model: the causal LM, wrapped by PEFT when there is an adapter; in eval mode and all dropout 0.
        trainable: name -> parameter that the optimizer moves.
        frozen_copy: the base for full fine-tuning; None with an adapter, where the base is the model with the adapter off.
        eos_token_ids: every id that ends a completion.
    """

    model: nn.Module
    tokenizer: object
    trainable: dict[str, nn.Parameter]
    frozen_copy: nn.Module | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    @property
    def initial(self) -> list[Tensor] | None:
        """Start values of the trainable parameters where L2 is on the difference from them (full fine-tuning)."""
        if self.frozen_copy is None:
            return None
        start = dict(self.frozen_copy.named_parameters())
        return [start[name] for name in self.trainable]

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The base model, without gradients."""
        with torch.no_grad():
            if self.frozen_copy is not None:
                yield self.frozen_copy
            elif hasattr(self.model, "disable_adapter"):
                with self.model.disable_adapter():
                    yield self.model
            else:
                yield self.model  # not trained: it is its own reference

    @property
    def commit(self) -> str | None:
        """The commit of the Hub that the weights were read from; None for a local folder."""
        return getattr(self.model.config, "_commit_hash", None)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def load_policy(config: ExperimentConfig) -> Policy:
    """The model, tokenizer and adapter of a run.

    Weights are read from safetensors alone and code from the Hub is never run. The adapter's start values come from the run's
    stream "init"; PEFT starts B at zero, so that the policy starts as the base.

    Raises:
        UserError: the model cannot be read, or the adapter does not fit it.
    """
    device = resolve_device(config.device)
    model, tokenizer = load_base(config.model_path, config.revision, getattr(torch, config.dtype))
    model.to(device)
    frozen_copy = None
    if config.method == "base":
        model.requires_grad_(False)
    elif config.lora_rank:
        model = attach_lora(model, config)
    else:
        frozen_copy, _ = load_base(config.model_path, config.revision, getattr(torch, config.dtype))
        frozen_copy.to(device).requires_grad_(False)
    if config.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.eval()
    trainable = {name: parameter for name, parameter in sorted(model.named_parameters()) if parameter.requires_grad}
    return Policy(model, tokenizer, trainable, frozen_copy, _eos_token_ids(model, tokenizer), _pad_token_id(model, tokenizer))


def load_base(path: str, revision: str | None = None, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, object]:
    """A causal LM without dropout, and its tokenizer, from a folder or the Hub.

    Raises:
        UserError: naming the model and the ways to supply it. Also for weights or a tokenizer that are not all there, which
            transformers fills up with random numbers and an empty vocabulary.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()
    shared = {"revision": revision, "trust_remote_code": False}
    try:
        if Path(path).is_absolute() and not Path(path).is_dir():
            raise FileNotFoundError("there is no such folder")
        tokenizer = AutoTokenizer.from_pretrained(path, **shared)
        if not tokenizer("1", add_special_tokens=False)["input_ids"]:
            raise ValueError("its tokenizer is empty (is tokenizer.json missing?)")
        architecture = AutoConfig.from_pretrained(path, **shared)
        for name, value in architecture.to_dict().items():
            if "drop" in name and isinstance(value, float):  # attention_dropout, resid_pdrop, ...: each family has its own
                setattr(architecture, name, 0.0)
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            config=architecture,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            **shared,
        )
        if found["missing_keys"]:
            raise ValueError(f"its weights lack {min(found['missing_keys'])}")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot load the model {path!r}: {first_line} (give a local folder or a name on the Hub with --set model=...)"
        ) from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval(), tokenizer


def resolve_device(name: str) -> torch.device:
    """The torch device of a config's ``device``; "auto" takes a GPU if there is one.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={name}, but torch sees no GPU here: set device=cpu or device=auto")
    return torch.device(name)


def attach_lora(model: nn.Module, config: ExperimentConfig) -> nn.Module:
    """The model under the run's adapter; a function of the run's seed that leaves the global random state as it was."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.lora_targets),
        layers_to_transform=None if config.lora_layers is None else list(config.lora_layers),
        lora_dropout=0.0,
        bias="none",
    )
    # PEFT draws from the global generator: give it this run's stream and put the global state back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(config.seed, "init").initial_seed())
        try:
            adapted = get_peft_model(model, lora, revision=getattr(model.config, "_commit_hash", None) or config.revision)
        except ValueError as error:
            raise UserError(f"the adapter does not fit the model: {str(error).splitlines()[0]}") from None
    adapted.peft_config["default"].base_model_name_or_path = base_name(config)  # saved with the adapter, for others to find it by
    return adapted


def _eos_token_ids(model: nn.Module, tokenizer) -> tuple[int, ...]:
    ids = model.config.eos_token_id
    ids = list(ids) if isinstance(ids, list | tuple) else [ids]
    ids = {*ids, tokenizer.eos_token_id} - {None}
    if not ids:
        raise UserError("neither the model's config nor its tokenizer names an end-of-sequence token")
    return tuple(sorted(ids))


def _pad_token_id(model: nn.Module, tokenizer) -> int:
    for candidate in (tokenizer.pad_token_id, model.config.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return candidate
    return 0
