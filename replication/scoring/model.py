"""What scoring has to know of a model: whether it can be packed, what is inside an adapter, its device and its dtypes."""

from __future__ import annotations

import warnings
import weakref

import torch
from torch import Tensor, nn

#: Architectures whose attention honours a custom mask and explicit positions; others are scored densely.
PACKABLE = ("qwen2", "qwen3", "llama", "smollm3", "olmo2", "gpt2")


def why_not_packable(model: nn.Module) -> str | None:
    """What about this model could make packed log-probs wrong, or None."""
    causal_lm = unwrapped(model)
    config = causal_lm.config
    if config.model_type not in PACKABLE:
        return f"packing was not checked for the architecture {config.model_type!r}"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "it has layers without full attention (a sliding window counts rows, not depths)"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention {config._attn_implementation!r} takes no custom mask"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        return f"its rotary embedding {rope['rope_type']!r} depends on the length of the row"
    return None


_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def warn_once(model: nn.Module, reason: str) -> None:
    """Say that this model is scored densely, and why, the first time it is."""
    causal_lm = unwrapped(model)
    if causal_lm not in _warned:
        _warned.add(causal_lm)
        warnings.warn(f"scoring this model densely: {reason}", stacklevel=3)


def unwrapped(model: nn.Module) -> nn.Module:
    """The causal LM itself; a PEFT adapter lives inside its layers and stays active."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def result_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of its log-probs."""
    return torch.float64 if unwrapped(model).dtype == torch.float64 else torch.float32


def upcast(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 if they are: log-probs are never computed in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()
