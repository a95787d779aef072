"""Loading a causal LM with its tokenizer and attaching the adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from replication.base_files import check_gguf, is_gguf, readable
from replication.config import ExperimentConfig
from replication.console import quiet_libraries, say
from replication.errors import UserError, first_line
from replication.models.card import base_name
from replication.models.checks import check_decoding, check_finite
from replication.randomness import stream


@dataclass(frozen=True)
class Policy:
    """A model, its trainable parameters, and the base that it started from.

    Attributes:
        model: the causal LM, wrapped by PEFT when there is an adapter; in eval mode and all dropout 0.
        trainable: name -> parameter that the optimizer moves.
        frozen_copy: the base for full fine-tuning; None with an adapter, where the base is the model with the adapter off.
        eos_token_ids: every id that ends a completion, wherever the model declares it.
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
    def dtype(self) -> str:
        """The dtype of the frozen weights, by torch's name."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def commit(self) -> str | None:
        """The commit of the Hub that the weights were read from; None for a local folder."""
        return getattr(self.model.config, "_commit_hash", None)

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt: those that the model's own tokenizer gives a raw text, without anything it adds at the end.

        Many families are trained on texts that begin with a BOS token and answer badly without it. A text that already begins
        with it, as rendered chat texts do, gets no second one. An appended EOS would end the prompt before its answer.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        prefix = _prefix_ids(self.tokenizer)
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def decode(self, tokens: list[int]) -> str:
        """Text of generated ids, without special tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def load_policy(config: ExperimentConfig) -> Policy:
    """The model, tokenizer and adapter of a run.

    Weights are read from safetensors or GGUF alone and code from the Hub is never run. The adapter's start values come from the
    run's stream "init"; PEFT starts B at zero, so that the policy starts as the base.

    Raises:
        UserError: the model cannot be read, or the adapter does not fit it.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    if dtype == torch.float16 and not config.lora_rank and config.method != "base":
        raise UserError("lora_rank=0 trains the weights themselves, which float16 is too coarse for: set dtype=float32 or bfloat16")
    model, tokenizer = load_base(config.model_path, config.revision, dtype)
    model.to(device)
    check_decoding(model)
    frozen_copy = None
    if config.method == "base":
        model.requires_grad_(False)
    elif config.lora_rank:
        model = attach_lora(model, config)
    else:
        frozen_copy, _ = load_base(config.model_path, config.revision, dtype)
        frozen_copy.to(device).requires_grad_(False)
    if config.activation_checkpointing:
        # gradient_checkpointing_enable in the first releases of transformers 5.
        word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        getattr(model, f"{word}_checkpointing_enable")(**{f"{word}_checkpointing_kwargs": {"use_reentrant": False}})
    model.eval()
    trainable = {name: parameter for name, parameter in sorted(model.named_parameters()) if parameter.requires_grad}
    return Policy(model, tokenizer, trainable, frozen_copy, _eos_token_ids(model, tokenizer), _pad_token_id(model, tokenizer))


def load_base(path: str, revision: str | None = None, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, object]:
    """A causal LM without dropout, and its tokenizer, from a folder, a GGUF file or the Hub.

    Attention is torch's sdpa where the architecture has it, else transformers' eager one.

    Raises:
        UserError: naming the model and the ways to supply it. Also for weights or a tokenizer that are not all there, which
            transformers fills up with random numbers and an empty vocabulary, and for weights that are not finite.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()
    shared = {"revision": revision, "trust_remote_code": False}
    try:
        if is_gguf(path):
            check_gguf(path)
        elif Path(path).is_absolute() and not Path(path).is_dir():
            raise FileNotFoundError("there is no such folder")
        with readable(path) as (name, gguf):
            shared |= gguf
            tokenizer = AutoTokenizer.from_pretrained(name, **shared)
            if not tokenizer("1", add_special_tokens=False)["input_ids"]:
                raise ValueError("its tokenizer is empty (is tokenizer.json missing?)")
            architecture = AutoConfig.from_pretrained(name, **shared)
            _without_dropout(architecture)
            model, found = AutoModelForCausalLM.from_pretrained(
                name, config=architecture, dtype=dtype, use_safetensors=True, output_loading_info=True, **shared
            )
        if is_gguf(path):
            model.config._name_or_path = tokenizer.name_or_path = path  # not the temporary folder
        if found["missing_keys"]:
            raise ValueError(f"its weights lack {min(found['missing_keys'])}")
        check_finite(model)
    except Exception as error:  # of any kind: the readers of tokenizers, safetensors and GGUF trust what a file says
        raise UserError(
            f"cannot load the model {path!r}: {first_line(error)} (give a folder, a GGUF file or a name on the Hub with "
            "--set model=...)"
        ) from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval(), tokenizer


def _without_dropout(architecture) -> None:
    """Set every dropout of a config and of the configs inside it to 0; each family has names of its own."""
    for name, value in vars(architecture).items():
        if "drop" in name and isinstance(value, float):  # attention_dropout, resid_pdrop, ...
            setattr(architecture, name, 0.0)
    for name in architecture.sub_configs:
        if (inner := getattr(architecture, name, None)) is not None:
            _without_dropout(inner)


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


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the frozen weights for a config's ``dtype``; "auto" takes what the device computes fast, and says which.

    A CPU takes float32. A GPU takes bfloat16 if it computes in it (NVIDIA Ampere and later), else float16 if it has tensor cores
    (compute capability 7.0 and later), else float32: older GPUs compute in float16 at a small part of their speed.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cpu":
        chosen, why = torch.float32, "a CPU computes fastest in it"
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        chosen, why = torch.bfloat16, "this GPU computes in it"
    elif torch.cuda.get_device_capability(device) >= (7, 0):
        chosen, why = torch.float16, "this GPU has no bfloat16"
    else:
        chosen, why = torch.float32, "this GPU has no fast 16-bit format"
    say(f"dtype=auto: {str(chosen).removeprefix('torch.')}, {why}; adapter, log-softmax and loss are in float32")
    return chosen


def attach_lora(model: nn.Module, config: ExperimentConfig) -> nn.Module:
    """The model under the run's adapter; a function of the run's seed that leaves the global random state as it was."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.lora_targets),
        exclude_modules=_of_other_towers(model, config.lora_targets),
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
            raise UserError(f"the adapter does not fit the model: {first_line(error)}") from None
    adapted.peft_config["default"].base_model_name_or_path = base_name(config)  # saved with the adapter, for others to find it by
    return adapted


def _prefix_ids(tokenizer) -> list[int]:
    """What the tokenizer puts before every text: a BOS token, several tokens, or nothing."""
    plain, whole = (tokenizer("1", add_special_tokens=special)["input_ids"] for special in (False, True))
    starts = (start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
    return whole[: next(starts, 0)]


def _of_other_towers(model: nn.Module, targets: Sequence[str]) -> list[str] | None:
    """Modules named like a target in parts that text does not pass, as in a vision tower; None if there are none."""
    inside = {*model.get_decoder().modules(), model.get_output_embeddings()}
    outside = [name for name, module in model.named_modules() if name.split(".")[-1] in targets and module not in inside]
    return outside or None


def _eos_token_ids(model: nn.Module, tokenizer) -> tuple[int, ...]:
    """Every id that the config, the generation config or the tokenizer names as an end: families declare it in different places."""
    ids = {tokenizer.eos_token_id}
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        declared = config.eos_token_id if config is not None else None
        ids |= set(declared) if isinstance(declared, list | tuple) else {declared}
    ids.discard(None)
    if not ids:
        raise UserError("none of the model's configs and its tokenizer names an end-of-sequence token")
    return tuple(sorted(ids))


def _pad_token_id(model: nn.Module, tokenizer) -> int:
    for candidate in (tokenizer.pad_token_id, model.config.get_text_config().pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return candidate
    return 0
