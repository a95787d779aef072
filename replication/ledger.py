"""What a step costs, counted rather than timed: tokens, FLOPs and bytes of an update and of a rollout.

Only matrix products are counted (2 x m x n x k each), as the counter of torch counts them; norms, activations and softmaxes are
left out. Bytes are what autograd keeps for the backward pass, the masks, and the largest chunk of logits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from replication.algorithms import TokenCredit, build_trie
from replication.packing import batch_rows, pack_groups
from replication.scoring import chunk_positions, unwrapped, why_not_packable

#: Which projections read what: those of one stage share an input, and a gradient that enters at a stage reaches all later ones.
_STAGES = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "c_attn": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2, "c_fc": 2, "down_proj": 3}
_LAYER = re.compile(r"\.(?:layers|h)\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class ScoringCost:
    """Cost of one update: tokens through the transformer (padding not counted), through the output layer and in the loss.

    flops and bytes: those of one forward and backward pass, and the most held at once above the model, padding counted; None
    where the model was not given.
    """

    forwarded: int
    scored: int
    in_loss: int
    flops: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class RolloutCost:
    """Cost of one rollout: tokens through the transformer, FLOPs, and the largest key-value cache."""

    forwarded: int
    flops: int
    bytes: int


@dataclass(frozen=True)
class _Site:
    """One linear layer of a block: its size, where it stands, and the rank of its adapter (0: none)."""

    layer: int
    stage: int
    inputs: int
    outputs: int
    rank: int
    trained: bool


def scoring_cost(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    credits: Sequence[TokenCredit],
    strategy: str,
    model: nn.Module | None = None,
) -> ScoringCost:
    """The cost of ``token_log_probs`` with the same arguments, and of differentiating it once.

    Bytes are a prediction for blocks like Qwen2's and GPT-2's with sdpa attention in one part; other blocks keep other things.
    """
    if strategy == "packed" and model is not None and why_not_packable(model):
        strategy = "dense"  # as token_log_probs does
    if strategy == "packed":
        width = None if model is None else unwrapped(model).config.hidden_size
        rows = pack_groups(prompts, completions, credits, width=width)
        forwarded = sum(map(len, rows))
        shapes = [(len(batch), len(batch[0]), sum(len(np.unique(row.source)) for row in batch)) for batch in batch_rows(rows)]
    else:
        forwarded, shapes = 0, []
        for prompt, group, credit in zip(prompts, completions, credits, strict=True):
            if len(credit):
                forwarded += len(group) * len(prompt) + sum(map(len, group))
                length = len(prompt) + max(map(len, group))
                shapes.append((len(group), length, len(group) * length))
    scored = sum(shape[2] for shape in shapes) if strategy == "packed" else forwarded
    in_loss = sum(len(credit) for credit in credits)
    if model is None:
        return ScoringCost(forwarded, scored, in_loss)
    sites, first = _sites(model)
    passes = [_pass_cost(model, sites, first, *shape, chunked=strategy == "packed") for shape in shapes]
    flops, kept, logits = (list(column) for column in zip(*passes, strict=True)) if passes else ([], [], [])
    # What the passes keep adds up until they are differentiated; logits stand there one chunk at a time if they are chunked.
    held = sum(kept) + (max(logits, default=0) if strategy == "packed" else sum(logits))
    return ScoringCost(forwarded, scored, in_loss, sum(flops), held)


def rollout_cost(
    model: nn.Module, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]], rows: int
) -> RolloutCost:
    """The cost of having sampled these completions, at most ``rows`` of them at a time."""
    sites, _ = _sites(model)
    config = unwrapped(model).config
    per_token = sum(_forward_flops(site) for site in sites)
    attention = 4 * _query_size(config) * config.num_hidden_layers
    head = 2 * config.hidden_size * config.vocab_size
    cache_token = 2 * config.num_hidden_layers * _key_size(config) * torch.finfo(unwrapped(model).dtype).bits // 8
    chunk = max(1, rows // max(1, max(map(len, completions), default=1)))
    forwarded = flops = peak = 0
    for start in range(0, len(prompts), chunk):
        some = prompts[start : start + chunk]
        length = max(map(len, some))
        forwarded += len(some) * length
        flops += len(some) * (length * (per_token + attention * length) + head)
        # A step puts every distinct prefix through the model that some completion goes on from: the inner nodes of the tries.
        tries = [build_trie(group) for group in completions[start : start + chunk]]
        inner = [trie.depth[np.unique(trie.parent[trie.parent >= 0])] for trie in tries]
        for depth, carried in enumerate(np.bincount(np.concatenate(inner)).tolist()):
            forwarded += carried
            flops += carried * (per_token + attention * (length + depth) + head)
            peak = max(peak, carried * (length + depth) * cache_token)
    return RolloutCost(forwarded, flops, peak)


def _pass_cost(model, sites, first: tuple[int, int], rows: int, length: int, scored: int, *, chunked: bool) -> tuple[int, int, int]:
    """FLOPs, bytes kept and bytes of logits of one forward and backward pass over ``rows`` x ``length`` tokens."""
    causal_lm = unwrapped(model)
    config = causal_lm.config
    size = torch.finfo(causal_lm.dtype).bits // 8
    tokens = rows * length
    flops = kept = 0
    queries = _query_size(config)
    for site in sites:
        flops += tokens * (_forward_flops(site) + _backward_flops(site, (site.layer, site.stage) > first))
    for layer in range(config.num_hidden_layers):
        product = 2 * rows * length * length * queries  # an additive mask blocks nothing: all pairs are computed
        flops += 2 * product
        if first < (layer, 1):
            flops += 5 * product  # the scores once more, and four products for the gradients
            kept += tokens * _kept_per_token([site for site in sites if site.layer == layer], config, first < (layer, 0))
    head = 2 * config.hidden_size * config.vocab_size
    trained_head = causal_lm.get_output_embeddings().weight.requires_grad
    chunk = min(scored, chunk_positions(causal_lm)) if chunked else scored
    recomputed = chunked and chunk < scored
    flops += scored * head * (2 + trained_head + recomputed)
    kept += tokens * config.hidden_size  # the last norm's input
    mask = rows * length * length if chunked else 0
    # In the backward pass logits, their exponentials and two gradients stand side by side; a dense log-softmax does with fewer.
    return flops, size * (kept + mask), 4 * (5 if chunked else 3) * chunk * config.vocab_size


def _sites(model: nn.Module) -> tuple[list[_Site], tuple[int, int]]:
    """The linear layers of all blocks, and (layer, stage) of the first with something to train; before it nothing is kept."""
    causal_lm = unwrapped(model)
    sites = []
    for name, module in causal_lm.named_modules():
        found = _LAYER.search(name)
        if not found or "lora_" in name or name.endswith("base_layer"):
            continue
        base = getattr(module, "base_layer", module)
        if not hasattr(base, "weight") or base.weight.ndim != 2:
            continue
        ranks = [part.out_features for part in getattr(module, "lora_A", {}).values()]
        shape = (base.in_features, base.out_features) if isinstance(base, nn.Linear) else tuple(base.weight.shape)
        trained = any(parameter.requires_grad for parameter in module.parameters())
        sites.append(_Site(int(found[1]), _stage(found[2]), *shape, sum(ranks), trained))
    embeddings = causal_lm.get_input_embeddings().weight.requires_grad
    nothing = (10**9, 0)
    first = (-1, 0) if embeddings else min(((site.layer, site.stage) for site in sites if site.trained), default=nothing)
    return sites, first


def _stage(name: str) -> int:
    last = name.rsplit(".", 1)[-1]
    if last == "c_proj":  # GPT-2 calls both output projections so
        return 3 if "mlp" in name else 1
    return _STAGES.get(last, 2)


def _forward_flops(site: _Site) -> int:
    return 2 * site.inputs * site.outputs + 2 * site.rank * (site.inputs + site.outputs)


def _backward_flops(site: _Site, input_gradient: bool) -> int:
    full = 2 * site.inputs * site.outputs
    flops = full if input_gradient else 0
    if site.rank:
        # Both weights, the way through B, and through A if the input wants its gradient.
        flops += 2 * site.rank * (site.inputs + 2 * site.outputs + (site.inputs if input_gradient else 0))
    elif site.trained:
        flops += full
    return flops


def _kept_per_token(sites: list[_Site], config, input_gradient: bool) -> int:
    """Numbers that autograd keeps for each token of one block."""
    hidden, queries = config.hidden_size, _query_size(config)
    gated = hasattr(config, "intermediate_size")
    inner = config.intermediate_size if gated else (config.n_inner or 4 * hidden)
    kept = hidden * (1 + input_gradient)  # the inputs of the two norms
    kept += 4 * queries  # queries, keys and values for every head, and what attention returns
    kept += (3 if gated else 4) * inner  # gate, its activation and up; or the steps of GELU
    for stage in {site.stage for site in sites if site.trained}:
        kept += max(site.inputs for site in sites if site.stage == stage and site.trained)
    return kept + sum(site.rank for site in sites if site.trained)


def _head_size(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _query_size(config) -> int:
    return _head_size(config) * config.num_attention_heads


def _key_size(config) -> int:
    return _head_size(config) * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
