"""The critic: its values and its gradient against one plain forward pass for each prefix, and what it must leave alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import COMPLETIONS, PROMPTS, REWARDS, exact
from tiny_runs import tiny_config

from replication.algorithms import PPO
from replication.critic import Critic, explained_variance
from replication.errors import UserError
from replication.groups import Group
from replication.models import load_policy
from replication.rollout import Completion
from replication.tasks import Problem
from replication.training_state import TrainingState


def grouped(completions=COMPLETIONS, rewards=REWARDS) -> list[Group]:
    """Ragged groups, one of them tied, with an empty completion and with equal ones."""
    made = []
    for prompt, group, own in zip(PROMPTS, completions, rewards, strict=True):
        samples = [Completion(tokens, [0.0] * len(tokens), [0.0] * len(tokens), False, False) for tokens in group]
        made.append(Group(Problem("p", "", "", {}), prompt, samples, [""] * len(group), own, [0] * len(group)))
    return made


def critic_of(base, **changes) -> Critic:
    """A critic in float64 whose adapter and head are random: a new one says 0 everywhere."""
    config = tiny_config(base, "ppo", **changes)
    policy = load_policy(config)
    exact(policy.model.double())
    critic = Critic(policy, config)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in [*policy.trainable.values(), *critic.trainable.values()]:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    return critic


def plain_values(critic: Critic, groups: list[Group]) -> list[torch.Tensor]:
    """The value of each prefix from a forward pass of its own, in the order of the tokens."""
    values = []
    critic.model.set_adapter("critic")
    for group in groups:
        for tokens in group.completions:
            for t in range(len(tokens)):
                ids = torch.tensor([group.prompt + tokens[:t]])
                states = critic.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
                values.append(states[0, -1] @ critic.head.weight[0] + critic.head.bias[0])
    critic.model.set_adapter("default")
    return values


def flat(values) -> list[float]:
    return [value for group in values for completion in group for value in completion]


@pytest.mark.parametrize("change", [{}, {"scoring": "dense"}, {"token_budget": 64}, {"activation_checkpointing": True}], ids=str)
def test_values_and_gradient_against_a_pass_for_each_prefix(random_base, change):
    critic, groups, method = critic_of(random_base, **change), grouped(), PPO(lam=0.7)
    expected = plain_values(critic, groups)
    judged, row, forwarded = critic.judge(groups, method.targets)
    assert flat(group.values for group in judged) == pytest.approx([value.item() for value in expected], abs=1e-10)
    assert [[len(row) for row in group.values] for group in judged] == [[*map(len, group)] for group in COMPLETIONS]
    targets = flat(method.targets(group.completions, group.rewards, group.values) for group in judged)
    loss = sum((value - target) ** 2 for value, target in zip(expected, targets, strict=True)) / len(targets)
    assert row["value_loss"] == pytest.approx(loss.item(), abs=1e-10)
    found = {name: parameter.grad.clone() for name, parameter in critic.trainable.items()}
    assert len(found) == 10 and all(gradient.abs().max() > 1e-6 for gradient in found.values())
    critic.model.set_adapter("critic")  # PEFT switches requires_grad with the adapter
    wanted = torch.autograd.grad(loss, list(critic.trainable.values()))
    for (name, gradient), other in zip(found.items(), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-10, msg=name)
    assert forwarded > 0


def test_a_factor_on_the_loss_scales_the_gradient_and_not_what_is_reported(random_base):
    critic, groups = critic_of(random_base), grouped()
    seen = []
    for factor in (1.0, 8.0):
        for parameter in critic.trainable.values():
            parameter.grad = None
        _, row, _ = critic.judge(groups, PPO().targets, lambda loss, factor=factor: factor * loss)
        seen.append((row["value_loss"], critic.trainable["head.weight"].grad / factor))
    assert seen[0][0] == seen[1][0]
    torch.testing.assert_close(seen[0][1], seen[1][1])


def test_the_policy_neither_sees_the_critic_nor_gets_its_gradient(random_base):
    config = tiny_config(random_base, "ppo")
    policy = load_policy(config)
    tokens = torch.arange(5, 25).reshape(2, 10)

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return policy.model(tokens).logits

    before, state = logits(), torch.random.get_rng_state()
    critic = Critic(policy, config)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not set(map(id, critic.trainable.values())) & set(map(id, policy.trainable.values()))
    for parameter in critic.trainable.values():
        torch.nn.init.constant_(parameter, 0.5)
    critic.judge(grouped(), PPO().targets)
    assert torch.equal(logits(), before) and not policy.model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in policy.trainable.values())
    with policy.reference() as base:
        base(tokens)
    assert torch.equal(logits(), before), "the reference must give the policy's own adapter back"


def test_a_stop_within_the_critic_gives_the_policy_its_adapter_back(random_base):
    config = tiny_config(random_base, "ppo")
    policy = load_policy(config)
    critic = Critic(policy, config)

    def stopping(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        critic.judge(grouped(), stopping)
    assert policy.model.active_adapter == "default" and not policy.model.training


def test_a_new_critic_says_0_and_is_a_function_of_the_seed(random_base):
    def new(seed: int) -> Critic:
        config = tiny_config(random_base, "ppo", seed=seed)
        return Critic(load_policy(config), config)

    one, same, other = new(0), new(0), new(1)
    judged, _, _ = one.judge(grouped(), PPO().targets)
    assert set(flat([group.values for group in judged])) == {0.0}
    names = [name for name in one.trainable if "lora_A" in name]
    assert names and all(torch.equal(one.trainable[name], same.trainable[name]) for name in names)
    assert not any(torch.equal(one.trainable[name], other.trainable[name]) for name in names)
    policy = dict(one.model.named_parameters())
    assert not any(torch.equal(one.trainable[name], policy[name.replace(".critic.", ".default.")]) for name in names)


def test_without_an_adapter_there_is_no_critic(random_base):
    config = tiny_config(random_base, "ppo", lora_rank=0)
    with pytest.raises(UserError, match="set lora_rank to 1 or more"):
        Critic(load_policy(config), config)


def test_explained_variance():
    def of(values, rewards) -> float | None:
        return explained_variance([replace(group, values=own) for group, own in zip(grouped(rewards=rewards), values, strict=True)])

    knows = [
        [[reward.item()] * len(tokens) for tokens, reward in zip(*pair, strict=True)]
        for pair in zip(COMPLETIONS, REWARDS, strict=True)
    ]
    assert of(knows, REWARDS) == 1.0
    constant = [[[0.3] * len(tokens) for tokens in group] for group in COMPLETIONS]
    assert of(constant, REWARDS) == pytest.approx(0.0, abs=1e-12)
    wrong = [[[-value for value in row] for row in group] for group in knows]
    assert of(wrong, REWARDS) == pytest.approx(-3.0)
    assert of(constant, [torch.ones_like(reward) for reward in REWARDS]) is None


def test_a_critic_learns_a_batch_that_comes_again(random_base):
    config = tiny_config(random_base, "ppo")
    critic = Critic(load_policy(config), config)
    state, groups = TrainingState(critic, 1e-2), grouped()
    rows = []
    for _ in range(80):
        state.zero_grad()
        _, row, _ = critic.judge(groups, PPO().targets)
        rows.append(row)
        assert state.step(row["value_loss"], 1.0, max_grad_norm=1.0) is not None

    def mean_behind(group: Group, prefix: list[int]) -> float:
        rows = zip(group.rewards.tolist(), group.completions, strict=True)
        behind = [reward for reward, tokens in rows if tokens[: len(prefix)] == prefix and len(tokens) > len(prefix)]
        return sum(behind) / len(behind)

    # No critic can tell equal prefixes apart: the best value is the mean reward of the completions behind one.
    best = [
        replace(group, values=[[mean_behind(group, tokens[:t]) for t in range(len(tokens))] for tokens in group.completions])
        for group in groups
    ]
    assert rows[0]["explained_variance"] == 0
    assert 0.8 * explained_variance(best) < rows[-1]["explained_variance"] <= explained_variance(best) + 1e-9
