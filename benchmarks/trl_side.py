"""TRL's GRPOTrainer set to this project's mathematics, with clocks at its own seams."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from replication.config import ExperimentConfig
from replication.errors import UserError
from replication.groups import Group, reward
from replication.models import Policy, load_base
from replication.tasks import Problem


def require_trl() -> None:
    """Raise UserError if the extra ``bench`` is not installed."""
    try:
        import trl  # noqa: F401
    except ImportError:
        raise UserError("TRL is not installed: make bench does it (pip install -e '.[bench]')") from None


def make_trainer(
    config: ExperimentConfig,
    model: torch.nn.Module,
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    steps: int,
    max_new_tokens: int,
    checkpointing: bool = False,
    clock: Clock | None = None,
    credit: Any = None,
):
    """A GRPOTrainer for the base model: loss_type grpo, beta 0, one iteration, no top-k or top-p, plain AdamW.

    With ``credit`` it is a TokenCreditTrainer, otherwise the same.

    One optimizer step sees all completions of ``prompts_per_step`` problems at once, in the order given.
    ``checkpointing`` is TRL's default but trades time for memory, so the timings leave it off.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    from replication.integrations.trl import TokenCreditTrainer

    def exact_match(prompts, completions, completion_ids, index, **_) -> list[float]:
        values = []
        for text, ids, which in zip(completions, completion_ids, index, strict=True):
            truncated = ids[-1] not in (tokenizer.eos_token_id, tokenizer.pad_token_id)
            values.append(reward(text, truncated, problems[which]))
        if clock is not None:
            clock.rewards = values
        return values

    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="bench-trl-"),
        use_cpu=config.device == "cpu",
        max_steps=steps,
        per_device_train_batch_size=config.prompts_per_step * config.group_size,
        gradient_accumulation_steps=1,
        num_generations=config.group_size,
        max_completion_length=max_new_tokens,
        temperature=config.temperature,
        top_k=0,
        top_p=1.0,
        loss_type="grpo",
        beta=0.0,
        num_iterations=1,
        scale_rewards="group",
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        optim="adamw_torch",
        max_grad_norm=config.max_grad_norm,
        gradient_checkpointing=checkpointing,
        bf16=False,
        fp16=False,
        shuffle_dataset=False,
        dataloader_pin_memory=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        seed=config.seed,
    )
    trainer, extra = (GRPOTrainer, {}) if credit is None else (TokenCreditTrainer, {"credit": credit})
    return trainer(
        **extra,
        model=model,
        reward_funcs=exact_match,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": problem.prompt, "index": i} for i, problem in enumerate(problems)]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules=list(config.lora_targets),
            lora_dropout=0.0,
            bias="none",
        ),
    )


def idle_trainer(config: ExperimentConfig, model: torch.nn.Module, **how: Any) -> tuple[Any, torch.optim.Optimizer]:
    """A trainer that samples nothing, and its optimizer: it wants a tokenizer and a problem, but the batches are ready."""
    _, tokenizer = load_base(config.model_path)
    trainer = make_trainer(config, model, tokenizer, config.load_task().train[:1], steps=1, max_new_tokens=8, **how)
    trainer.current_gradient_accumulation_steps = 1
    return trainer, trainer.create_optimizer()


def inputs_of(groups: Sequence[Group], pad_token_id: int) -> dict[str, Tensor]:
    """The batch that TRL's ``compute_loss`` would get for these groups: prompts padded left, completions right."""
    prompts = [group.prompt for group in groups for _ in group.samples]
    completions = [completion for group in groups for completion in group.completions]
    advantages = []
    for group in groups:
        centred = group.rewards - group.rewards.mean()
        advantages.append(centred / (group.rewards.std() + 1e-4))
    prompt_ids, prompt_mask = _padded(prompts, pad_token_id, left=True)
    completion_ids, completion_mask = _padded(completions, pad_token_id, left=False)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.cat(advantages),
        "num_items_in_batch": completion_mask.sum(),
    }


def credited_inputs_of(config: ExperimentConfig, groups: Sequence[Group]) -> dict[str, Any]:
    """The batch that TokenCreditTrainer's ``compute_loss`` would get for these groups."""
    from benchmarks.common import credits_of
    from replication.integrations.trl import micro_batch

    prompts = [group.prompt for group in groups for _ in group.samples]
    completions = [completion for group in groups for completion in group.completions]
    size = len(groups[0].samples)
    batch = micro_batch(range(len(completions)), 0, size, prompts, completions, credits_of(config, groups), {})
    return {"micro_batch": [batch]}


def _padded(sequences: Sequence[Sequence[int]], fill: int, *, left: bool) -> tuple[Tensor, Tensor]:
    length = max(map(len, sequences))
    ids = torch.full((len(sequences), length), fill)
    mask = torch.zeros((len(sequences), length), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        place = slice(length - len(sequence), length) if left else slice(0, len(sequence))
        ids[row, place] = torch.tensor(list(sequence))
        mask[row, place] = 1
    return ids, mask


def loss_and_gradients(trainer: Any, inputs: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """TRL's loss of a batch and the gradient of each adapter parameter, by name."""
    trainer.model.zero_grad(set_to_none=True)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.model.zero_grad(set_to_none=True)
    return loss.item(), gradients


def update(trainer: Any, optimizer: torch.optim.Optimizer, inputs: dict[str, Tensor], max_grad_norm: float) -> float:
    """TRL's loss, backward, clipping and optimizer step, without the loop around them."""
    trainer.model.train()
    optimizer.zero_grad(set_to_none=True)
    loss = trainer.compute_loss(trainer.model, inputs)
    trainer.accelerator.backward(loss)
    torch.nn.utils.clip_grad_norm_([p for p in trainer.model.parameters() if p.requires_grad], max_grad_norm)
    optimizer.step()
    return loss.item()


def copy_adapter(trainer: Any, policy: Policy) -> None:
    """Give the policy TRL's adapter, so that both sides sample from and update the same model."""
    values = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in policy.trainable.items():
            parameter.copy_(values[name])


class Clock:
    """Times one step of a running trainer: its rollout (sampling, decoding, rewards) and the rest of the step."""

    def __init__(self) -> None:
        self.rollout_s = self.step_s = 0.0
        self.batch: dict[str, Tensor] = {}
        self.rewards: list[float] = []

    @property
    def tokens_forwarded(self) -> int:
        """Of TRL's own update, which forwards its padding too."""
        return sum(self.batch[name].numel() for name in ("prompt_ids", "completion_ids"))

    def run(self, trainer: Any, after: Callable[[int], None]) -> None:
        """Train, and call ``after`` with the number of each step once it is timed."""
        from transformers import TrainerCallback

        clock, original = self, trainer._generate_and_score_completions

        class Steps(TrainerCallback):
            def on_step_begin(self, *_, **__) -> None:
                clock.started = time.perf_counter()

            def on_step_end(self, arguments, state, control, **_) -> None:
                clock.step_s = time.perf_counter() - clock.started
                after(state.global_step)

        def timed(inputs):
            started = time.perf_counter()
            self.batch = original(inputs)
            self.rollout_s = time.perf_counter() - started
            return self.batch

        trainer._generate_and_score_completions = timed
        trainer.add_callback(Steps())
        trainer.train()
