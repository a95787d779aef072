"""One optimizer step of TRL's trainer, with or without token credit, on fixed completions; also what a launched process runs.

``python trl_runs.py BASE OUT RULE [field=value ...]`` writes the gradients of a step to OUT (by the first process).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func warns
os.environ["CI"] = "true"  # no telemetry

import torch
from datasets import Dataset
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from replication.algorithms import GRPO, SGRPO, TSPMO
from replication.integrations.trl import TokenCreditTrainer

SIZE = 4
PROMPTS = ["3 + 4 =", "Ann has 5 apples .", "7", "12 - 5 ="]
RULES = {"grpo": GRPO(), "s_grpo": SGRPO(2, 0.5, 5), "t_spmo": TSPMO()}
#: Ids from here on are words; those below are special or end a completion somewhere.
FIRST = 13


def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
    """Completions that depend on step, prompt and place in the group alone, and share prefixes; some are cut off."""
    tokenizer = trainer.processing_class
    start = trainer.accelerator.process_index * len(prompts)
    completions = []
    for row, prompt in enumerate(prompts, start):
        chance = torch.Generator().manual_seed(1000 * trainer.state.global_step + 10 * PROMPTS.index(prompt) + row % SIZE)
        length = int(torch.randint(2, 9, (), generator=chance))
        own = torch.randint(FIRST, FIRST + 10, (length,), generator=chance)
        common = torch.arange(length) + FIRST + len(prompt)
        tokens = torch.where(torch.rand(length, generator=chance) < 0.7, common, own).tolist()
        completions.append(tokens if row % SIZE == 3 else [*tokens, tokenizer.eos_token_id])
    return {"prompt_ids": tokenizer(prompts)["input_ids"], "completion_ids": completions, "logprobs": None}


def varied(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that hardly ever ties."""
    return [sum(ids) % 11 / 10 for ids in completion_ids]


def short(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """0 or 1, so that groups can tie."""
    return [float(len(ids) < 6) for ids in completion_ids]


def nothing_after_the_first(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Only the completions of the first prompt differ in reward: the other groups tie."""
    return [sum(ids) % 11 / 10 * (prompt == PROMPTS[0]) for prompt, ids in zip(prompts, completion_ids, strict=True)]


def some_unscored(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [None if sum(ids) % 3 == 0 else sum(ids) % 11 / 10 for ids in completion_ids]


REWARDS = {f.__name__: f for f in (varied, short, nothing_after_the_first, some_unscored)}


def settings(**changes: Any) -> GRPOConfig:
    """All 16 completions of the 4 prompts in one micro-batch, plain gradients, nothing written but into a temporary folder."""
    fields = {
        "output_dir": tempfile.mkdtemp(prefix="trl-"),
        "use_cpu": True,
        "bf16": False,
        "max_steps": 1,
        "per_device_train_batch_size": SIZE * len(PROMPTS),
        "gradient_accumulation_steps": 1,
        "num_generations": SIZE,
        "max_completion_length": 10,
        "loss_type": "grpo",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "shuffle_dataset": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return GRPOConfig(**{**fields, **changes})


class Recorder(TrainerCallback):
    """The gradient of each parameter before each optimizer step, by the name it has in the model itself."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.gradients.append(
            {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        )


def make_trainer(base: Path | str, credit: Any = None, *, rewards: Any = varied, kind: Any = None, lora: Any = None, **fields: Any):
    """Stock GRPOTrainer without ``credit``, else ours; and its recorder. ``lora`` is a LoraConfig or None for full fine-tuning."""
    recorder = Recorder()
    named = {key: fields.pop(key) for key in ("rollout_func", "eval_dataset", "scoring") if key in fields}
    named.setdefault("rollout_func", rollout)
    if credit is not None:
        named["credit"] = credit
    torch.manual_seed(0)  # older versions draw the adapter before they set the seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = (kind or (GRPOTrainer if credit is None else TokenCreditTrainer))(
            model=Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32),
            reward_funcs=rewards,
            args=settings(**fields),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
            processing_class=Qwen2Tokenizer.from_pretrained(base),
            peft_config=lora,
            callbacks=[recorder],
            **named,
        )
    return trainer, recorder


def gradients(base: Path | str, credit: Any = None, **named: Any) -> dict[str, torch.Tensor]:
    trainer, recorder = make_trainer(base, credit, **named)
    trainer.train()
    return recorder.gradients[0]


def main() -> None:
    base, out, rule, *fields = sys.argv[1:]
    named = {key: json.loads(value) for key, value in (field.split("=") for field in fields)}
    rewards = REWARDS[named.pop("rewards", "varied")]
    trainer, recorder = make_trainer(base, RULES[rule], rewards=rewards, ddp_backend="gloo", **named)
    trainer.train()
    if trainer.accelerator.is_main_process:
        torch.save({"gradients": recorder.gradients[0], "log": trainer.state.log_history[0]}, out)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
