"""TRL's GRPOTrainer with token credit: a credit rule chooses the tokens of the loss, and only those are computed.

TRL samples, rewards, logs, saves and distributes. This module changes four things, each at one method:

- ``_calculate_rewards``: keep the rewards of all processes, which TRL forgets once it has its own advantages;
- ``_generate_and_score_completions``: assign credit on whole groups, and hand TRL whole micro-batches to shuffle and split;
- ``_compute_loss``: score the credited tokens of a micro-batch and return the surrogate of their rows;
- the model's ``forward``: run the scoring inside it, since only a forward pass of its wrapper makes DDP synchronise gradients.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from replication.algorithms import TokenCredit
from replication.errors import UserError
from replication.objective import k3, surrogate_loss
from replication.randomness import stream
from replication.scoring import score
from replication.user_code import OwnRule

#: Settings of GRPOConfig with which the loss would mean something else than the credit says: field -> (needed value, why).
NEEDED_SETTINGS = {
    "loss_type": ("grpo", "the weights of the credit say how the loss averages over tokens"),
    "num_iterations": (1, "the importance ratio is 1 only if each batch of completions is used for one optimizer step"),
    "importance_sampling_level": ("token", "credit belongs to tokens"),
    "scale_rewards": ("group", "the credit rule turns rewards into advantages, and TRL's advantages are not used"),
    "multi_objective_aggregation": ("sum_then_normalize", "a credit rule takes one reward for each completion"),
    "top_entropy_quantile": (1.0, "the credit rule chooses the tokens"),
    "entropy_coef": (0.0, "entropies need the logits of every token, and only credited tokens are scored"),
    "use_adaptive_entropy": (False, "entropies need the logits of every token, and only credited tokens are scored"),
    "off_policy_mask_threshold": (None, "it masks by the log-probs of every token, and only credited tokens are scored"),
    "use_liger_kernel": (False, "Liger replaces the forward pass that the scoring calls"),
}


@dataclass(frozen=True)
class MicroBatch:
    """The completions of a micro-batch by prompt, and the rows of their groups' credit that fall on them.

    Attributes:
        prompts: B lists of token ids.
        completions: for each prompt those of its completions that are in this micro-batch.
        credits: for each prompt the rows on these completions, numbered as here.
        reference: (sum N,) log-probs of the credited tokens under the reference model, or None if beta is 0.
        groups: completions / group size, so half a group counts 0.5.
    """

    prompts: list[list[int]]
    completions: list[list[list[int]]]
    credits: list[TokenCredit]
    reference: Tensor | None
    groups: float


class TokenCreditTrainer(GRPOTrainer):
    """A GRPOTrainer whose loss is the surrogate of a credit rule.

    Formula: loss = -1/B * sum over the B groups of an optimizer step, sum over the rows of their credit of
    weight * (ratio * advantage - beta * KL), as in ``replication.objective.surrogate_loss``. Accumulation, the number of
    processes and micro-batches smaller than a group do not change it.

    Args:
        credit: a rule with ``assign(completions, rewards, generator) -> TokenCredit``, e.g. TSPMO(), SGRPO(...), GRPO(). It gets
            the generated tokens and the weighted sums of the rewards of one whole group.
        scoring: "packed" computes equal prefixes once and nothing behind the last credited token; "dense" is the reference.
        args: TRL's settings; ``NEEDED_SETTINGS`` lists the values that are needed.
        arguments: all others of GRPOTrainer, by name.

    Logs, beside TRL's metrics:
        kept_fraction: credited / generated tokens over the groups that do not tie; missing if all tie.
        tied_groups: share of the groups whose rewards are all equal.
        tokens_forwarded: tokens, padding aside, that went through the model in the update of one optimizer step.
        kl: the term that beta multiplies.

    TRL's entropy and clip_ratio are missing: the first needs all tokens, and nothing is clipped on policy.

    Raises:
        UserError: a setting, the rule, the model or the way to distribute it cannot work here; says what to change.
    """

    _tag_names = ["trl", "token-credit"]
    _paper = {}

    def __init__(self, *, credit: Any, scoring: Literal["packed", "dense"] = "packed", args: GRPOConfig, **arguments: Any) -> None:
        _check_settings(args)
        self._rule = _checked_rule(credit, args.num_generations)
        if scoring not in ("packed", "dense"):
            raise UserError(f'scoring must be "packed" or "dense", not {scoring!r}')
        if arguments.get("tools") or arguments.get("environment_factory"):
            raise UserError("leave out tools and environment_factory: a credit rule takes only tokens that the model generated")
        super().__init__(args=args, **arguments)
        check_engine(self)
        self.credit = credit
        self.scoring = scoring
        self._name = f"token credit: {credit!r}"  # for the model card
        self._rewards_per_function = torch.empty(0)
        self._draws: tuple[tuple[str, int], int] = (("", -1), 0)
        self._tokens_forwarded = 0
        _let_forward_score(self.model)

    def _calculate_rewards(self, *arguments: Any, **named: Any) -> Tensor:
        self._rewards_per_function = super()._calculate_rewards(*arguments, **named)  # (completions of all processes, functions)
        return self._rewards_per_function

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if "tool_mask" in output:
            raise UserError("leave out env_mask in rollout_func: a credit rule takes only tokens that the model generated")
        training = self.model.training
        size = self.num_generations if training else self.num_generations_eval
        prompts = _unpadded(output["prompt_ids"], output["prompt_mask"])
        completions = _unpadded(output["completion_ids"], output["completion_mask"])

        # A group may span processes, so every process assigns the credit of all groups and keeps the rows of its completions.
        everyone = gather_object(completions)
        rewards = (self._rewards_per_function * self.reward_weights.to(self._rewards_per_function)).nansum(dim=1)
        rewards[self._rewards_per_function.isnan().all(dim=1)] = torch.nan
        groups = [everyone[start : start + size] for start in range(0, len(everyone), size)]
        credits = [
            _assigned(self._rule, group, reward, generator)
            for group, reward, generator in zip(groups, rewards.cpu().split(size), self._generators(len(groups)), strict=True)
        ]
        self._log_credit(groups, rewards.cpu().split(size), credits)

        first = self.accelerator.process_index * len(completions)
        parts = self.args.steps_per_generation if training else 1
        rows = len(completions) // parts
        batches = [
            micro_batch(range(start, start + rows), first, size, prompts, completions, credits, output)
            for start in range(0, rows * parts, rows)
        ]
        # TRL shuffles and splits what lies in this dictionary along its first dimension, which is that of whole micro-batches.
        return {"index": torch.arange(parts), "micro_batch": batches}

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        mode = "train" if self.model.training else "eval"
        (batch,) = inputs["micro_batch"]
        log_probs, forwarded = model(function=functools.partial(self._score, batch=batch))
        loss, terms = surrogate_loss(log_probs, batch.credits, groups=1, reference_log_probs=batch.reference, beta=self.beta)
        if self.beta and getattr(self.args, "use_bias_correction_kl", False):
            # TRL's default in newer versions multiplies each token's KL by the ratio, which changes the gradient and not the value.
            weight = torch.cat([credit.weight for credit in batch.credits]).to(log_probs)
            kl = k3(log_probs.detach(), batch.reference)
            loss = loss + self.beta * (weight * kl * torch.expm1(log_probs - log_probs.detach())).sum()
        if self.beta:
            kl = torch.tensor(terms["kl"] / batch.groups, device=loss.device)
            self._metrics[mode]["kl"].append(self.accelerator.reduce(kl, "mean").item())
        self._tokens_forwarded += forwarded
        if self.accelerator.sync_gradients:
            forwarded = torch.tensor(self._tokens_forwarded, device=loss.device)
            self._metrics[mode]["tokens_forwarded"].append(self.accelerator.reduce(forwarded, "sum").item())
            self._tokens_forwarded = 0
        # The mean over the groups of the optimizer step: DDP takes the mean over processes.
        return loss / (batch.groups * (self.current_gradient_accumulation_steps if mode == "train" else 1))

    def _score(self, model: nn.Module, *, batch: MicroBatch) -> tuple[Tensor, int]:
        """Log-probs of the credited tokens, and how many tokens went through the model; called inside the model's forward."""
        log_probs, forwarded, _ = score(
            model, batch.prompts, batch.completions, batch.credits, strategy=self.scoring, temperature=self.temperature
        )
        if not len(log_probs):
            # Without credit nothing is scored, but DDP waits for a gradient of every parameter: give it zeros.
            log_probs = torch.stack([p.sum(dtype=torch.float32) for p in model.parameters() if p.requires_grad])[:0]
        return log_probs, forwarded

    def _generators(self, count: int) -> list[torch.Generator]:
        """A stream for each group, numbered within the optimizer step: the same draws for every way to split and after a resume."""
        place = ("train" if self.model.training else "eval", self.state.global_step)
        before = self._draws[1] if self._draws[0] == place else 0
        self._draws = (place, before + count)
        return [stream(self.args.seed, "selection", *place, before + index) for index in range(count)]

    def _log_credit(self, groups: Sequence[list[list[int]]], rewards: Sequence[Tensor], credits: Sequence[TokenCredit]) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        scored = [reward[~reward.isnan()] for reward in rewards]
        tied = [not len(reward) or bool(reward.max() == reward.min()) for reward in scored]
        generated = sum(len(tokens) for group, tie in zip(groups, tied, strict=True) if not tie for tokens in group)
        metrics["tied_groups"].append(sum(tied) / len(tied))
        if generated:
            metrics["kept_fraction"].append(sum(map(len, credits)) / generated)


def micro_batch(
    rows: range,
    first: int,
    size: int,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    credits: Sequence[TokenCredit],
    output: dict[str, Tensor],
) -> MicroBatch:
    """The micro-batch of some of a process's completions.

    Args:
        rows: which completions of this process, in the order of ``prompts`` and ``completions``.
        first: number of this process's first completion among those of all processes.
        size: completions of a group.
        credits: one for each group of all processes.
        output: TRL's batch, of which the log-probs of the reference and the ratios that correct vLLM's sampling are taken.
    """
    members: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for row in rows:
        members.setdefault(((first + row) // size, tuple(prompts[row])), []).append(row)
    reference, ratio = output.get("ref_per_token_logps"), output.get("importance_sampling_ratio")
    if ratio is not None:  # of each token, or one for a completion
        ratio = ratio.expand_as(output["completion_ids"]).cpu()
    parts, references = [], []
    for (group, _), chosen in members.items():
        credit = credits[group]
        place = torch.full((size,), -1)  # of each completion of the group, in this micro-batch
        place[[first + row - group * size for row in chosen]] = torch.arange(len(chosen))
        here = place[credit.completion] >= 0
        completion, position, advantage = place[credit.completion[here]], credit.position[here], credit.advantage[here]
        row = torch.tensor(chosen)[completion]
        if ratio is not None:
            advantage = advantage * ratio[row, position]
        if reference is not None:
            references.append(reference[row.to(reference.device), position.to(reference.device)])
        parts.append(TokenCredit(completion, position, advantage, credit.weight[here]))
    return MicroBatch(
        prompts=[list(prompt) for _, prompt in members],
        completions=[[completions[row] for row in chosen] for chosen in members.values()],
        credits=parts,
        reference=torch.cat(references) if references else None,
        groups=len(rows) / size,
    )


def _assigned(rule: OwnRule, completions: list[list[int]], rewards: Tensor, generator: torch.Generator) -> TokenCredit:
    """The rule's credit of a group; a completion that no reward function scored (NaN) is left out, as TRL does.

    The weights then add up to the share of the completions that are scored: TRL too divides by the number of all.
    """
    scored = torch.nonzero(~rewards.isnan()).squeeze(1)
    if not len(scored):
        return TokenCredit.empty()
    result = rule.assign([completions[index] for index in scored], rewards[scored], generator)
    return TokenCredit(scored[result.completion], result.position, result.advantage, result.weight * (len(scored) / len(rewards)))


def _unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[kept].tolist() for row, kept in zip(ids.cpu(), mask.bool().cpu(), strict=True)]


def _let_forward_score(model: nn.Module) -> None:
    """Let ``model(function=function)`` return ``function(model)``, through whatever wraps the model by then."""
    forward = model.forward

    @functools.wraps(type(model).forward)  # generate() reads its arguments from the signature
    def forward_or_score(self: nn.Module, *arguments: Any, function: Any = None, **named: Any) -> Any:
        return forward(*arguments, **named) if function is None else function(self)

    model.forward = types.MethodType(forward_or_score, model)


def _check_settings(args: GRPOConfig) -> None:
    for name, (needed, why) in NEEDED_SETTINGS.items():
        if (value := getattr(args, name, needed)) != needed:  # older versions of TRL lack some of them
            raise UserError(f"set {name}={needed!r} in GRPOConfig, not {value!r}: {why}")
    if args.gradient_accumulation_steps % args.steps_per_generation:
        raise UserError(
            f"steps_per_generation={args.steps_per_generation} must divide gradient_accumulation_steps="
            f"{args.gradient_accumulation_steps}: completions of an earlier policy are no longer on policy"
        )


def _checked_rule(credit: Any, size: int) -> OwnRule:
    """The rule, tried on a small group: an error there would otherwise come after the first rollout."""
    if inspect.isclass(credit):
        raise UserError(f"pass {credit.__name__}(), not the class")
    rule = OwnRule(f"credit={credit!r}", credit, type(credit).__module__)
    if lacking := set(rule.needs) - {"replay_starts"}:  # without replays they are all 0, which is the default
        raise UserError(f"credit={credit!r} needs {', '.join(lacking)}: TRL gives completions, rewards and a generator alone")
    rule.assign([[0, index] for index in range(size)], torch.arange(size, dtype=torch.float32), stream(0, "trial"))
    return rule


def check_engine(trainer: GRPOTrainer) -> None:
    """Raise UserError for a model, or a way to distribute it, whose loss cannot be computed from the credited tokens alone."""
    if isinstance(trainer.processing_class, ProcessorMixin):
        raise UserError("pass the model's tokenizer as processing_class: vision and other inputs beside text are not scored")
    if getattr(trainer, "aux_loss_enabled", False):
        raise UserError("set router_aux_loss_coef=0: the router's loss needs every token, and only credited tokens are scored")
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
        raise UserError("use DDP or DeepSpeed ZeRO 1 or 2: FSDP and ZeRO 3 need as many forward passes in every process")
