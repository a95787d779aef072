"""Evaluation: greedy whatever the batch, truncated is wrong, KL to the base by an independent sum."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import noisy_rewards, tiny_config

from replication import evaluate as evaluation
from replication.evaluate import accuracy, evaluate, final_evaluation, kl_to_base
from replication.groups import sample_groups, training_batch
from replication.models.load import Policy, load_base, load_policy
from replication.rollout import Completion
from replication.tasks import get_task

TASK = get_task("word_problems")  # prompts of many lengths, so that batches are padded
PROBLEMS = TASK.test[:7]


@pytest.fixture(scope="module")
def policy(random_base: Path) -> Policy:
    policy = load_policy(tiny_config(random_base))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return policy


@pytest.mark.parametrize("sampled", [0, 1])
@pytest.mark.parametrize("change", [{"eval_batch_size": 1}, {"eval_batch_size": 3}, {"token_budget": 128}], ids=str)
def test_the_batch_does_not_change_the_answers(policy, random_base, change, sampled):
    whole = evaluate(policy, tiny_config(random_base, eval_batch_size=100), TASK, PROBLEMS, sampled=sampled)
    other = evaluate(policy, tiny_config(random_base, **change), TASK, PROBLEMS, sampled=sampled)
    assert [r.sample.tokens for r in whole] == [r.sample.tokens for r in other]
    assert [r.problem for r in whole] == list(PROBLEMS) and len({r.text for r in whole}) > 1


def test_greedy_takes_the_most_probable_token_each_time(policy, random_base):
    for result in evaluate(policy, tiny_config(random_base, seed=1), TASK, PROBLEMS):
        tokens = policy.encode(result.problem.prompt)
        assert tokens == result.prompt
        for token in result.sample.tokens:
            with torch.no_grad():
                assert policy.model(torch.tensor([tokens])).logits[0, -1].argmax() == token
            tokens.append(token)


def test_sampled_answers_have_a_stream_of_their_own_for_each_item(policy, random_base):
    config = tiny_config(random_base)
    here = evaluate(policy, config, TASK, PROBLEMS, sampled=1)
    again = evaluate(policy, config, TASK, PROBLEMS[::-1], sampled=1)[::-1]
    other = evaluate(policy, tiny_config(random_base, seed=1), TASK, PROBLEMS, sampled=1)
    assert [r.sample.tokens for r in here] == [r.sample.tokens for r in again] != [r.sample.tokens for r in other]


def test_a_truncated_completion_is_wrong_and_still_says_what_it_read(policy, random_base, monkeypatch):
    texts = {" The answer is {}.": (False, 1, 1), " The answer is {} ": (True, 0, 1), " none": (False, 0, 0), "": (True, 0, 0)}
    problems = PROBLEMS[: len(texts)]
    made = []
    for problem, (text, (truncated, _, _)) in zip(problems, texts.items(), strict=True):
        tokens = policy.encode(text.format(problem.answer)) or [policy.tokenizer.eos_token_id]
        made.append([Completion(tokens, [0.0] * len(tokens), [0.0] * len(tokens), truncated)])
    monkeypatch.setattr(evaluation, "sample_in_chunks", lambda *args, **named: made)
    results = evaluate(policy, tiny_config(random_base), TASK, problems)
    assert [(r.sample.truncated, int(r.correct), int(r.parsed)) for r in results] == list(texts.values())
    assert accuracy(results) == 0.25 and accuracy([]) is None


@pytest.mark.parametrize("kind", ["base", "grpo", "full"])
def test_the_base_has_no_distance_from_itself(random_base, kind):
    config = tiny_config(random_base, kind)
    untrained = load_policy(config)
    for group in sample_groups(untrained, config, TASK, PROBLEMS, 0):
        assert kl_to_base(untrained, config, [(group.prompt, group.originals)]) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("kind", ["t_spmo", "t_spmo_replay"])
def test_kl_is_the_mean_of_k3_over_the_tokens_of_the_originals(policy, random_base, monkeypatch, kind):
    noisy_rewards(monkeypatch)
    config = tiny_config(random_base, kind, temperature=0.7)
    base, _ = load_base(str(random_base))
    for group in sample_groups(policy, config, TASK, PROBLEMS[:3], 0):
        terms = []
        for sample, start in zip(group.samples, group.replay_starts, strict=True):
            tokens = torch.tensor([group.prompt + sample.tokens])
            places = range(len(group.prompt) - 1, tokens.shape[1] - 1)
            with torch.no_grad():
                ours, theirs = (torch.log_softmax(m(tokens).logits[0].double() / 0.7, -1) for m in (policy.model, base))
            for place in () if start else places:
                difference = (theirs - ours)[place, tokens[0, place + 1]].item()
                terms.append(math.exp(difference) - difference - 1)
        found = kl_to_base(policy, config, [(group.prompt, group.originals)])
        assert found > 1e-4 and found == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_kl_of_no_tokens_is_no_number(policy, random_base):
    assert kl_to_base(policy, tiny_config(random_base), []) is None
    assert kl_to_base(policy, tiny_config(random_base), [([5], [Completion([], [], [], False)])]) is None


def test_the_final_evaluation_covers_every_split_once(policy, random_base, monkeypatch):
    noisy_rewards(monkeypatch)
    config = tiny_config(random_base, task="word_problems", eval_items=4, test_items=6)
    task = config.load_task()
    summary, rows = final_evaluation(policy, config, task)
    splits = {split: getattr(task, split)[: 6 if split == "test" else 4] for split in ("test", "validation", "held_out")}
    splits["train"] = training_batch(config, task, 0) + training_batch(config, task, 1)[:1]
    for split, problems in splits.items():
        items = [row for row in rows if row["split"] == split]
        assert [row["item_id"] for row in items] == [problem.id for problem in problems]
        assert [row["template"] for row in items] == [problem.meta["template"] for problem in problems]
        assert all(row["reward"] == row["correct"] for row in items), "this reward is exact match"
        name = "accuracy" if split == "test" else f"{split}_accuracy"
        assert summary[name] == sum(row["correct"] for row in items) / len(items)
        assert all({row["correct"], row["truncated"], row["parsed"]} <= {0, 1} for row in items)
    assert len(rows) == 6 + 3 * 4 and summary["n_items"] == 6
    assert summary["other_task_accuracy"] is not None and summary["longer_numbers_accuracy"] is not None
    assert summary["kl_to_base"] > 0 and 0 < summary["entropy"] < math.log(policy.model.config.vocab_size)


def test_extra_splits_can_be_left_out(policy, random_base, monkeypatch):
    noisy_rewards(monkeypatch)
    config = tiny_config(random_base, task="word_problems")
    whole, rows = final_evaluation(policy, config, config.load_task())
    less, fewer = final_evaluation(policy, config.model_copy(update={"extra_splits": "never"}), config.load_task())
    extra = ("held_out_accuracy", "train_accuracy", "other_task_accuracy", "longer_numbers_accuracy")
    assert all(whole[name] is not None and less[name] is None for name in extra), "not measured is not 0"
    assert {name: value for name, value in less.items() if name not in extra} == {n: v for n, v in whole.items() if n not in extra}
    assert fewer == [row for row in rows if row["split"] in ("test", "validation")]


def test_the_training_items_of_a_base_are_the_first(policy, random_base):
    config = tiny_config(random_base, "base")
    _, rows = final_evaluation(policy, config, config.load_task())
    train = [row["item_id"] for row in rows if row["split"] == "train"]
    assert train == [problem.id for problem in config.load_task().train[: config.eval_items]]


def test_sampled_accuracy_is_that_of_all_draws(policy, random_base, monkeypatch):
    noisy_rewards(monkeypatch)
    config = tiny_config(random_base, kl_samples=3, extra_splits="never")
    task = config.load_task()
    problems = task.test[: config.test_items]
    summary, rows = final_evaluation(policy, config, task)
    draws = [evaluate(policy, config, task, problems, sampled=draw) for draw in (1, 2, 3)]
    assert len({tuple(tuple(r.sample.tokens) for r in draw) for draw in draws}) == 3, "each draw is another one"
    assert summary["sampled_accuracy"] == sum(r.correct for draw in draws for r in draw) / (3 * len(problems))
    means = [kl_to_base(policy, config, [(r.prompt, [r.sample]) for r in draw]) for draw in draws]
    lengths = [sum(len(r.sample.tokens) for r in draw) for draw in draws]
    expected = sum(mean * length for mean, length in zip(means, lengths, strict=True)) / sum(lengths)
    assert summary["kl_to_base"] == pytest.approx(expected, rel=1e-5)
    assert sum(row["split"] == "test" for row in rows) == len(problems), "items.csv has the greedy answers alone"


def test_items_with_a_story_of_their_own_are_counted_apart(policy, random_base, monkeypatch):
    noisy_rewards(monkeypatch)
    config = tiny_config(random_base, test_items=6)
    known = [i in (0, 5) for i in range(6)]
    test = tuple(replace(p, meta={**p.meta, "story_in_train": seen}) for p, seen in zip(TASK.test, known, strict=False))
    summary, rows = final_evaluation(policy, config, replace(TASK, test=test))
    new = [row["correct"] for row, seen in zip(rows, known, strict=False) if not seen]
    assert summary["accuracy_new_stories"] == sum(new) / 4 != summary["accuracy"]
    assert final_evaluation(policy, config, TASK)[0]["accuracy_new_stories"] is None, "a task that does not say"


def test_more_items_than_there_are_is_all_of_them(policy, random_base):
    config = tiny_config(random_base, test_items=10_000, eval_items=10_000)
    small = replace(TASK, **{split: getattr(TASK, split)[:2] for split in ("train", "validation", "test")}, held_out=())
    lonely = config.model_copy(update={"task": "svamp"})  # a task that has no other one beside it
    summary, rows = final_evaluation(policy, lonely, small)
    assert summary["n_items"] == 2 and len(rows) == 6
    assert summary["held_out_accuracy"] is None and summary["other_task_accuracy"] is None, "not measured is not 0"
