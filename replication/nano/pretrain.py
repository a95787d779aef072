"""The nano base: a Qwen2 of under a million parameters, trained from scratch to stand where Qwen2-1.5B stood.

Greedy it solves a bit under half of the word problems and few products, because the corpus shows hasty solutions beside careful
ones; sampled it shows the careful ones often enough to be reinforced. The shipped weights were chosen by the criteria of
``base_report`` on validation items, before any reinforcement run on them.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from replication.errors import UserError
from replication.names import NANO_BASE
from replication.nano import corpus

SEED = 0
MIXTURES = ((corpus.EARLY, 2100), (corpus.MIDDLE, 800), (corpus.LATE, 400))  # and the steps of each
STEPS = sum(steps for _, steps in MIXTURES)
BATCH = 64
PART = 16  # sequences that go through the model at a time
LEARNING_RATE = 3e-3  # of AdamW
MUON_RATE = 0.02
WARM_UP = 50


def new_model(vocabulary: int, eos_token_id: int, pad_token_id: int) -> Qwen2ForCausalLM:
    """An untrained model of about 0.85 M parameters, float32, from the global random state."""
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.05,
        bos_token_id=None, eos_token_id=eos_token_id, pad_token_id=pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=eos_token_id, pad_token_id=pad_token_id)
    return model


def batch_loss(model: nn.Module, ids: Tensor, weight: Tensor) -> Tensor:
    """Sum over next tokens of weight x cross-entropy. ids, weight: [B, T], padded on the right (causal: no mask needed)."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weight[:, 1:].flatten()).sum()


def mixture_of(step: int, steps: int) -> corpus.Mixture:
    """The mixture of a step; with other ``steps`` than ``STEPS`` each lasts in proportion."""
    ends = itertools.accumulate(share for _, share in MIXTURES)
    return next(mixture for (mixture, _), end in zip(MIXTURES, ends, strict=True) if step * STEPS < end * steps)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then constant while the first mixture lasts, then linear decay to zero: a share of the peak."""
    decay = steps * (1 - MIXTURES[0][1] / STEPS)
    return min((step + 1) / WARM_UP, 1.0, (steps - step) / decay)


def new_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def pretrain(steps: int) -> tuple[Qwen2ForCausalLM, Any]:
    """Model and tokenizer after ``steps`` batches; a function of ``steps`` and the number of threads alone."""
    tokenizer = corpus.train_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = new_model(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    optimizers = new_optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    random = Random(f"nano_base:corpus:{SEED}")
    bar = tqdm(range(steps), desc="pre-training", disable=None, mininterval=5)
    for step in bar:
        pairs = [corpus.line(random, mixture_of(step, steps)) for _ in range(BATCH)]
        # Parts by length: less padding, the same gradient.
        pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        parts = [corpus.encode(tokenizer, pairs[at : at + PART]) for at in range(0, BATCH, PART)]
        total = sum(weight[:, 1:].sum() for _, weight in parts)
        loss = 0.0
        for ids, weight in parts:
            part = batch_loss(model, ids, weight) / total
            part.backward()
            loss += part.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_rate(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
    return model.eval(), tokenizer


def build(out: Path, *, steps: int | None = None, threads: int = 1) -> dict[str, Any]:
    """Pre-train, measure, write the folder ``out`` with its card, and compare the weights with the shipped ones.

    Returns the report that is also written as ``base_report.json``. Raises UserError if ``out`` exists.
    """
    from replication.nano import base_report

    out = Path(out)
    if out.exists():
        raise UserError(f"{out} already exists and is left as it is: name a new folder with --out")
    steps = STEPS if steps is None else steps
    if steps < 1 or threads < 1:
        raise UserError(f"steps and threads must be at least 1, not {steps} and {threads}")
    torch.set_num_threads(threads)  # the order of float sums, so the bits of the weights, depend on it
    start = time.perf_counter()
    model, tokenizer = pretrain(steps)
    seconds = time.perf_counter() - start
    out.mkdir(parents=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / base_report.WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    mixtures = [{"steps": share, **asdict(mixture)} for mixture, share in MIXTURES]
    settings = {"seed": SEED, "batch": BATCH, "adamw_rate": LEARNING_RATE, "muon_rate": MUON_RATE, "mixtures": mixtures}
    return base_report.write(out, steps=steps, threads=threads, seconds=seconds, shipped=NANO_BASE, settings=settings)
