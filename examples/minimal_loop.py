"""One training run in one file: sample, reward, credit, score, step, with the functions of the package.

    python examples/minimal_loop.py --method t_spmo --steps 10

``replication.train`` is the same loop with what a long run needs: warm-up, validation, checkpoints, batches cut to a token budget,
metrics, and no step where all groups tie. tests/examples/test_minimal_loop.py checks that both give the same numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

from replication.config import ExperimentConfig, load_profile
from replication.evaluate import accuracy, evaluate
from replication.groups import sample_groups, training_batch
from replication.models import Policy, load_policy
from replication.objective import surrogate_loss
from replication.randomness import stream
from replication.scoring import token_log_probs


def train(policy: Policy, config: ExperimentConfig, steps: int) -> Iterator[dict[str, float]]:
    """Take optimizer steps on the policy's trainable parameters; yields the numbers of each."""
    task, method = config.load_task(), config.build_method()
    parameters = list(policy.trainable.values())
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    for step in range(steps):
        # Sample a group of completions for each problem; the group holds their rewards too.
        groups = sample_groups(policy, config, task, training_batch(config, task, step), step)
        # Credit: the only line in which the methods differ.
        credits = [method.assign(g.completions, g.rewards, stream(config.seed, "selection", step, g.problem.id)) for g in groups]
        # Score the credited tokens under the policy that sampled them.
        prompts, completions = [g.prompt for g in groups], [g.completions for g in groups]
        log_probs = token_log_probs(policy.model, prompts, completions, credits, temperature=config.temperature)
        loss, _ = surrogate_loss(log_probs, credits)
        # Step.
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        credited, generated = sum(map(len, credits)), sum(g.generated_tokens for g in groups)
        reward = torch.cat([g.rewards for g in groups]).mean()
        yield {"reward": reward.item(), "loss": loss.item(), "grad_norm": norm.item(), "credited": credited / generated}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="nano", help="smoke, nano, small or paper (default: nano)")
    parser.add_argument("--method", default="grpo", help="grpo, s_grpo or t_spmo (default: grpo)")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps (default: 5)")
    options = parser.parse_args(arguments)
    config = load_profile(options.profile, method=options.method)
    policy, problems = load_policy(config), config.load_task().validation[: config.eval_items]
    print(f"before: {accuracy(evaluate(policy, config, config.load_task(), problems)):.1%} of {len(problems)} validation problems")
    for step, row in enumerate(train(policy, config, options.steps), start=1):
        print(f"step {step}: " + ", ".join(f"{name} {value:.3g}" for name, value in row.items()))
    print(f"after: {accuracy(evaluate(policy, config, config.load_task(), problems)):.1%}")


if __name__ == "__main__":
    main()
