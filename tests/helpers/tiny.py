"""Tiny causal LMs of transformers with random weights, made in the process, and a small batch to score with them."""

from __future__ import annotations

import functools
import types

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from replication.algorithms import GRPO, SGRPO, TSPMO, TokenCredit

# On matrices this small a second thread only waits: on a busy machine that is 30 s instead of 0.2 s for one test.
torch.set_num_threads(1)

VOCABULARY = 19
LAYERS = 3
#: Ids from here on stand in sequences; those below never do, so that their embeddings can be poisoned.
FIRST_USED = 4

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Wide enough that a wrong mask or position changes log-probs by tenths, not by 1e-4.
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny(architecture: str, attention: str = "sdpa", seed: int = 0, **changes) -> torch.nn.Module:
    """A causal LM of an architecture whose config names things as Qwen2's does."""
    return _built(AutoConfig.for_model(architecture, **{**_COMMON, **changes}), attention, seed)


def tiny_qwen2(attention: str = "sdpa", seed: int = 0, **changes) -> torch.nn.Module:
    return tiny("qwen2", attention, seed, **changes)


def tiny_gpt2(attention: str = "sdpa", seed: int = 0) -> torch.nn.Module:
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    names["max_position_embeddings"] = "n_positions"
    settings = {names.get(name, name): value for name, value in _COMMON.items() if name != "intermediate_size"}
    del settings["num_key_value_heads"]
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return _built(GPT2Config(**settings, **dropout), attention, seed)


BUILDERS = {name: functools.partial(tiny, name) for name in ("qwen2", "qwen3", "llama", "olmo2")}
BUILDERS |= {"smollm3": functools.partial(tiny, "smollm3", no_rope_layers=[1, 0, 1]), "gpt2": tiny_gpt2}


def _built(config, attention: str, seed: int) -> torch.nn.Module:
    # Weights come from a seed of their own, and the state of the session stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return exact(model).eval()


def exact(model: torch.nn.Module) -> torch.nn.Module:
    """Let the RMS norms work in the model's own dtype.

    Those of transformers round to float32 on the way, also in a float64 model: an equality at 1e-10 would then fail at
    1e-7 for a right engine, and a wrong one could hide behind the tolerance that this asks for. In float32 nothing changes.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_rms_norm, module)
    return model


def _rms_norm(module: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return module.weight * (hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + module.variance_epsilon))


def with_lora(model: torch.nn.Module, layers: list[int] | None = None, seed: int = 0) -> torch.nn.Module:
    """The model under a rank-4 adapter whose both halves are random: the usual zero half would hide its gradients."""
    gpt2 = model.config.model_type == "gpt2"
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=["c_attn", "c_fc"] if gpt2 else ["q_proj", "v_proj", "down_proj"],
        fan_in_fan_out=gpt2,
        layers_to_transform=layers,
        layers_pattern=None if layers is None else ("h" if gpt2 else "layers"),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0.0, 0.2)
    return adapted.eval()


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# A batch with everything that can go wrong: ragged prompts, a prompt of one token, duplicates, a completion inside another,
# an empty one, a tied group.
PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12]]
COMPLETIONS = [
    [[4, 5, 6], [4, 5, 7, 7, 7], [4, 5, 6], [9], [4, 8, 4, 8]],
    [[6, 6, 6, 6, 6, 6, 6], [6, 6], [], [6, 6, 6, 6, 7]],
    [[4, 4], [5, 4]],
]
REWARDS = [torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0])]
METHODS = {"grpo": GRPO(), "s_grpo": SGRPO(1, 0.5, 3), "t_spmo": TSPMO()}


def assigned(method, completions=COMPLETIONS, rewards=REWARDS) -> list[TokenCredit]:
    generator = torch.Generator().manual_seed(0)
    return [method.assign(group, reward, generator) for group, reward in zip(completions, rewards, strict=True)]


def credit_at(places: list[tuple[int, int]]) -> TokenCredit:
    ones = torch.ones(len(places))
    completion, position = torch.tensor(places, dtype=torch.long).reshape(-1, 2).unbind(1)
    return TokenCredit(completion.clone(), position.clone(), ones, ones)
