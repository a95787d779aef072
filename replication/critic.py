"""The critic of a method that needs values: the reward to expect, given the prompt and the tokens before each token."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from replication.algorithms import every_token
from replication.config import ExperimentConfig
from replication.errors import UserError
from replication.groups import Group
from replication.models import Policy
from replication.randomness import stream
from replication.scoring import micro_batches, prefix_states, upcast
from replication.signals import raise_if_stopped

ADAPTER = "critic"


class Critic:
    """A second adapter on the policy's frozen base, and a linear head on the last hidden state.

    The base is in memory once. The adapter has the shape of the policy's (rank, modules, layers) and start values from the run's
    stream "init"; its half B and the head start at zero, so that every value is 0 at first. Our reconstruction.

    Attributes:
        model: the policy's model. The critic's adapter is active inside the methods below alone.
        head: float32, or float64 if the model is.
        trainable: name -> parameter that the critic's optimizer moves.
    """

    def __init__(self, policy: Policy, config: ExperimentConfig) -> None:
        """Raises UserError for a policy without an adapter: its base is not frozen, and a critic would need another copy."""
        if not config.lora_rank:
            raise UserError(f"the critic of {config.method} is an adapter on a frozen base: set lora_rank to 1 or more")
        self.model, self.config = policy.model, config
        width = self.model.config.get_text_config().hidden_size
        dtype = torch.float64 if self.model.dtype == torch.float64 else torch.float32
        # Both draw from the global generator: give them this run's stream and put the global state back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(config.seed, "init", ADAPTER).initial_seed())
            self.model.add_adapter(ADAPTER, copy.copy(self.model.peft_config["default"]))
            self.head = nn.Linear(width, 1, dtype=dtype).to(self.model.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        with self._active():
            adapter = {name: parameter for name, parameter in sorted(self.model.named_parameters()) if parameter.requires_grad}
        self.trainable = adapter | {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}

    @contextmanager
    def _active(self) -> Iterator[None]:
        """The model under the critic's adapter instead of the policy's; PEFT lets gradients reach the active adapter alone."""
        self.model.set_adapter(ADAPTER)
        self.model.train(self.config.activation_checkpointing)  # as in the policy's backward pass
        try:
            yield
        finally:
            self.model.set_adapter("default")
            self.model.eval()

    def judge(
        self,
        groups: Sequence[Group],
        targets: Callable[..., list[list[float]]],
        scaled: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> tuple[list[Group], dict[str, float | None], int]:
        """Give the groups their values and accumulate the gradient of the critic's loss, or of ``scaled`` of it, in one pass.

        Formula: loss = 1/T * sum over all T generated tokens of the batch of (value - target)^2.
        Source: arXiv 1707.06347v2, section 5, the squared error. PPO takes the values from before the step. A batch has one step,
        so the loss is taken at the same values, and one pass gives both.

        Args:
            groups: of one step.
            targets: of (completions, rewards, values) of a group: one number for each generated token.
            scaled: as in ``replication.train.backward``.

        Returns:
            The groups with their values; value_loss and explained_variance; the tokens that the trunk computed.
        """
        prompts, completions = [group.prompt for group in groups], [group.completions for group in groups]
        credits = [every_token(own) for own in completions]
        how = {"strategy": self.config.scoring, "token_budget": self.config.token_budget}
        judged = [replace(group, values=[[] for _ in group.samples]) for group in groups]
        tokens = sum(map(len, credits))
        loss, forwarded = 0.0, 0
        with self._active():
            for part in micro_batches(prompts, completions, credits, self.config.token_budget):
                raise_if_stopped()
                batch = ([column[i] for i in part] for column in (prompts, completions, credits))
                states, passed = prefix_states(self.model, *batch, **how)
                value_N = self.head(upcast(states)).squeeze(-1)
                flat = iter(value_N.tolist())
                wanted: list[float] = []
                for i in part:
                    values = [list(itertools.islice(flat, len(row))) for row in completions[i]]
                    judged[i] = replace(groups[i], values=values)
                    wanted += itertools.chain(*targets(completions[i], groups[i].rewards, values))
                error = (value_N - torch.tensor(wanted, dtype=value_N.dtype, device=value_N.device)).square().sum() / tokens
                scaled(error).backward()
                loss += error.item()
                forwarded += passed
        return judged, {"value_loss": loss, "explained_variance": explained_variance(judged)}, forwarded


def explained_variance(groups: Sequence[Group]) -> float | None:
    """1 - var(reward - value) / var(reward) over all generated tokens; 1 is a critic that knows, 0 one that says the mean.

    None if all completions have one reward. Below 0 the values are worse than their mean.
    """
    values = np.array([value for group in groups for row in group.values for value in row], dtype=np.float64)
    rewards = np.concatenate([
        np.repeat(group.rewards.double().numpy(), [len(row) for row in group.values]) for group in groups
    ])  # fmt: skip
    return float(1.0 - (rewards - values).var() / rewards.var()) if np.ptp(rewards) else None
