"""What a run will take on a GPU before it is begun: bytes from the shapes of its model, hours from a few timed steps."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replication.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from replication.config import ExperimentConfig

#: Tokens of a prompt that the prediction counts with; the longest of SVAMP has about 100.
PROMPT_TOKENS = 128
#: What the prediction adds: the CUDA context with its libraries, and the allocator's losses to fragmentation.
CONTEXT_BYTES, FRAGMENTATION = int(0.75 * 2**30), 1.15
_GIB = 2**30


@dataclass(frozen=True)
class Peak:
    """Predicted bytes on the device: what lies there all the time, and the most an update and a rollout hold above it."""

    resident: int
    update: int
    rollout: int

    @property
    def total(self) -> int:
        return int((self.resident + max(self.update, self.rollout)) * FRAGMENTATION) + CONTEXT_BYTES

    def __str__(self) -> str:
        return (
            f"{self.total / _GIB:.1f} GiB (weights and optimizer {self.resident / _GIB:.1f}, update {self.update / _GIB:.1f}, "
            f"rollout {self.rollout / _GIB:.1f}, the rest context and fragmentation)"
        )


def predicted_peak(config: ExperimentConfig) -> Peak:
    """The most bytes a training step of a run is predicted to hold, from the shapes of its model alone (no weights are read).

    The worst batch is assumed: completions as long as allowed that share nothing, all their tokens credited. Weights in the
    config's dtype; gradient and both moments in that of what is trained; an update as the ledger predicts it for the largest
    part of the batch; a rollout as the key-value cache and the float64 copies of the logits.
    """
    from replication.algorithms import every_token
    from replication.ledger import rollout_cost, scoring_cost
    from replication.scoring import micro_batches, unwrapped

    model = shape_of(config)
    causal_lm = unwrapped(model)
    limit = config.max_new_tokens or config.load_task().max_new_tokens
    prompts = [[index] * PROMPT_TOKENS for index in range(config.prompts_per_step)]
    completions = [[[first] * limit for first in range(config.group_size)] for _ in prompts]
    credits = [every_token(group) for group in completions]
    parts = list(micro_batches(prompts, completions, credits, config.scoring_tokens))
    largest = max(parts, key=len)
    batch = [[column[i] for i in largest] for column in (prompts, completions, credits)]
    update = scoring_cost(*batch, config.scoring, model=model).bytes or 0
    if config.activation_checkpointing:
        # One layer at a time is computed again; of the others only the input is kept.
        one = shape_of(config.model_copy(update={"lora_layers": None}), layers=1)
        tokens = sum(len(prompts[i]) + sum(map(len, completions[i])) for i in largest)
        size = causal_lm.dtype.itemsize
        inputs = causal_lm.config.num_hidden_layers * tokens * causal_lm.config.hidden_size * size
        update = inputs + (scoring_cost(*batch, config.scoring, model=one).bytes or 0)
    rows = min(max(config.rollout_rows, config.group_size), config.prompts_per_step * config.group_size)
    groups = max(1, rows // config.group_size)
    cache = rollout_cost(model, prompts[:groups], completions[:groups], rows).bytes
    # log p, p, its float64 copy and cumulative sum, one of them gathered for each completion.
    rollout = cache + rows * causal_lm.config.vocab_size * (4 + 4 + 8 + 8 + 8)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    trained = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters() if parameter.requires_grad)
    copies = 1 if config.lora_rank else 2
    return Peak(weights * copies + 3 * trained, update, rollout)


def shape_of(config: ExperimentConfig, layers: int | None = None) -> nn.Module:
    """The model of a run with its adapter, on the meta device: shapes and dtypes without a byte of weights.

    Args:
        layers: another number of layers than the model has.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from replication.models.load import attach_lora

    architecture = AutoConfig.from_pretrained(config.model_path, revision=config.revision, trust_remote_code=False)
    if layers is not None:
        architecture.num_hidden_layers = layers
        if getattr(architecture, "layer_types", None):
            architecture.layer_types = architecture.layer_types[:layers]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture, dtype=getattr(torch, config.dtype))
        return attach_lora(model, config) if config.lora_rank and config.method != "base" else model


def timed_steps(config: ExperimentConfig, steps: int = 3) -> tuple[float, float]:
    """Seconds of one training step and of one evaluated item, from a short run in a process of its own.

    The first step, which loads kernels, is left out.

    Raises:
        UserError: the short run failed; its last line says why.
    """
    items = min(config.eval_batch_size, config.eval_items)
    short = config.model_copy(update={"steps": steps, "eval_every": steps, "eval_items": items, "test_items": 1})
    with tempfile.TemporaryDirectory() as scratch:
        words = shlex.split(short.command(Path(scratch) / "run"))
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"the timed warm-up steps failed: {last}")
        rows = [json.loads(line) for line in (Path(scratch) / "run/timings.jsonl").read_text().splitlines()]
    stepped = [row["step_s"] for row in rows if "step_s" in row][1:]
    first_evaluation = next(row["evaluation_s"] for row in rows if "evaluation_s" in row)
    return sum(stepped) / len(stepped), first_evaluation / (2 * items)  # greedy and sampled


def predicted_hours(configs: Sequence[ExperimentConfig], seconds: dict[str, tuple[float, float]], workers: int = 1) -> float:
    """Hours of a plan from ``timed_steps`` of each task: steps, validations (greedy and sampled) and the final evaluation."""
    total = 0.0
    for config in configs:
        step_s, item_s = seconds[config.task]
        validations = 1 + config.steps // config.eval_every if config.steps else 0
        items = 2 * validations * config.eval_items + 2 * config.test_items + 2 * config.eval_items
        total += config.steps * step_s + items * item_s
    return total / 3600 / workers
