"""Groups: rewards, streams of their own, replays from a forced prefix."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from tiny_runs import noisy_reward, noisy_rewards, tiny_config

from replication import groups
from replication.algorithms import TSPMO, every_token
from replication.groups import SUCCESS, Group, reward, sample_groups, stop_criterion, trained_problems, training_batch
from replication.models.load import Policy, load_policy
from replication.rollout import Completion
from replication.scoring.log_probs import token_log_probs
from replication.tasks import Problem, get_task

TASK = get_task("multiplication")
PROBLEMS = TASK.train[:4]
SEVEN = Problem("seven", "Question: What is 1*7?\nAnswer:", Decimal(7))


@pytest.fixture(scope="module")
def policy(random_base: Path) -> Policy:
    """Moved away from the base, as a policy in training is."""
    policy = load_policy(tiny_config(random_base, "t_spmo"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


@pytest.mark.parametrize(
    ("text", "right"),
    [(" The answer is 7.", True), ("7.0", True), ("3 or 7", True), ("7 or 3", False), ("seven", False), ("", False), ("-7", False)],
)
def test_reward_is_exact_match_of_the_final_number_and_0_if_cut_off(text, right):
    assert reward(text, False, SEVEN) == float(right)
    assert reward(text, True, SEVEN) == 0.0


def test_a_cut_completion_earns_nothing_though_its_text_is_right(policy, random_base, monkeypatch):
    tokens = policy.encode(" The answer is 7.")
    made = [Completion(tokens, [-1.0] * len(tokens), [1.0] * len(tokens), truncated) for truncated in (False, True)]
    monkeypatch.setattr(groups, "sample_in_chunks", lambda *args, **named: [made])
    (group,) = sample_groups(policy, tiny_config(random_base, "grpo"), TASK, [SEVEN], 0)
    assert group.rewards.tolist() == [1.0, 0.0] and not group.is_tied


def test_the_matcher_of_stop_strings_is_built_once_for_a_model(policy, monkeypatch):
    """For a vocabulary of 150,000 it takes seconds, and it was built again for each part of each batch."""
    built = []
    monkeypatch.setattr(groups, "StopStringCriteria", lambda *arguments: built.append(arguments))
    groups._matcher.cache_clear()
    task = replace(TASK, stop_strings=("###",))
    assert all(groups.stop_criterion(policy, task) is not None for _ in range(3))
    assert len(built) == 1
    groups._matcher.cache_clear()


def test_the_sample_budget_says_how_many_prompts_are_sampled_at_a_time(policy, random_base, monkeypatch):
    calls, generate = [], groups.generate
    monkeypatch.setattr(
        groups, "generate", lambda model, prompts, **how: calls.append(len(prompts)) or generate(model, prompts, **how)
    )
    sample_groups(policy, tiny_config(random_base, "grpo", token_budget=64, sample_budget=10_000), TASK, PROBLEMS, 5)
    assert calls == [len(PROBLEMS)]


def test_a_group_is_a_function_of_seed_step_and_problem_alone(policy, random_base):
    config = tiny_config(random_base, "grpo")
    here = sample_groups(policy, config, TASK, PROBLEMS, 5)
    torch.manual_seed(1)
    backwards = sample_groups(policy, config, TASK, PROBLEMS[::-1], 5)[::-1]
    alone = [sample_groups(policy, config, TASK, [problem], 5)[0] for problem in PROBLEMS]
    narrow = sample_groups(policy, tiny_config(random_base, "grpo", token_budget=64), TASK, PROBLEMS, 5)
    for others in (backwards, alone, narrow):
        assert [group.completions for group in others] == [group.completions for group in here]
        assert [group.problem for group in others] == [group.problem for group in here]
    later = sample_groups(policy, config, TASK, PROBLEMS, 6)
    seeded = sample_groups(policy, tiny_config(random_base, "grpo", seed=1), TASK, PROBLEMS, 5)
    for others in (later, seeded):
        assert all(a.completions != b.completions for a, b in zip(here, others, strict=True))
    for group in here:
        assert group.prompt == policy.encode(group.problem.prompt) and len(group.completions) == config.group_size
        assert len({tuple(tokens) for tokens in group.completions}) > 1, "the completions of a group are drawn apart"
        assert group.texts == [policy.decode(tokens) for tokens in group.completions]


def test_what_ends_a_completion(policy, random_base):
    config = tiny_config(random_base, "grpo", group_size=32)
    samples = [sample for group in sample_groups(policy, config, TASK, PROBLEMS, 0) for sample in group.samples]
    ended = [sample for sample in samples if not sample.truncated]
    assert ended and len(ended) < len(samples)
    for sample in samples:
        assert len(sample.tokens) == len(sample.log_probs) == len(sample.entropies) <= config.max_new_tokens
        *before, last = [token in policy.eos_token_ids for token in sample.tokens]
        assert not any(before) and last == (not sample.truncated)
        assert len(sample.tokens) == config.max_new_tokens or last


def test_a_stop_string_ends_a_completion_wherever_it_is_split(policy, random_base):
    config = tiny_config(random_base, "grpo", group_size=32)
    plain = sample_groups(policy, config, TASK, PROBLEMS, 0)
    second = [text[2:4] for group in plain for text in group.texts if text[1:4].isalpha() and text.count(text[2:4]) == 1][0]
    stopped = sample_groups(policy, config, replace(TASK, stop_strings=(second,)), PROBLEMS, 0)
    hits = 0
    for before, after in zip(plain, stopped, strict=True):
        for whole, text, old, new in zip(before.texts, after.texts, before.samples, after.samples, strict=True):
            assert old.tokens[: len(new.tokens)] == new.tokens
            if second in whole:
                hits += 1
                assert second in text and second not in policy.decode(new.tokens[:-1]) and not new.truncated
                assert new.stopped == (new.tokens[-1] not in policy.eos_token_ids)
            else:
                assert text == whole and not new.stopped
    assert hits


def stops(policy: Policy, text: str, *stop_strings: str, continues: bool = False) -> list[bool]:
    """Whether an answer that grows by one token of ``text`` at a time ends there."""
    tokens = torch.tensor([policy.encode(text)])
    stop = stop_criterion(policy, replace(TASK, stop_strings=stop_strings), continues=continues)
    return [bool(stop(tokens[:, : t + 1])) for t in range(tokens.shape[1])]


def test_a_stop_string_ends_no_answer_before_its_first_word(policy):
    """Models begin an answer with a line break or with the marker itself: of 749 cuts, 732 came before any text."""
    assert not any(stops(policy, "\nQuestion:", "\nQuestion:"))
    assert not any(stops(policy, " \n\nQuestion:", "\nQuestion:"))
    assert stops(policy, " 5.\nQuestion:", "\nQuestion:")[-1]
    twice = stops(policy, "\nQuestion: 5.\nQuestion:", "\nQuestion:")
    assert twice[-1] and not any(twice[:-1])
    assert stops(policy, "\nQuestion:", "\nQuestion:", continues=True)[-1], "a replay goes on inside an answer"


def test_a_token_that_ends_a_turn_ends_an_empty_answer_too(policy):
    pad = policy.tokenizer.pad_token
    assert stops(policy, pad, pad) == [True]
    assert not any(stops(policy, "5", pad))


def replayed(policy: Policy, base: Path, monkeypatch: pytest.MonkeyPatch, step: int = 0, **changes) -> list[Group]:
    noisy_rewards(monkeypatch)
    return sample_groups(policy, tiny_config(base, "t_spmo_replay", **changes), TASK, PROBLEMS, step)


def test_replays_restart_inside_completions_of_the_right_pool(policy, random_base, monkeypatch):
    found = {True: 0, False: 0}
    for step in range(4):
        originals = replayed(policy, random_base, monkeypatch, step, replay_successes=None, replay_failures=None)
        for plain, group in zip(originals, replayed(policy, random_base, monkeypatch, step), strict=True):
            size = len(plain.samples)
            assert group.samples[:size] == plain.samples and group.rewards[:size].tolist() == plain.rewards.tolist()
            assert group.replay_starts[:size] == [0] * size
            if plain.is_tied:
                assert len(group.samples) == size
                continue
            assert len(group.samples) == len(group.texts) == len(group.rewards) == len(group.replay_starts) == size + 3
            # Two from successes, then one from failures, as the config says.
            for number, wanted in ((size, True), (size + 1, True), (size + 2, False)):
                sample, start = group.samples[number], group.replay_starts[number]
                sources = [
                    index
                    for index, original in enumerate(plain.samples)
                    if 1 <= start < len(original.tokens)
                    and original.tokens[:start] == sample.tokens[:start]
                    and original.entropies[:start] == sample.entropies[:start]
                    and (plain.rewards[index].item() >= SUCCESS) == wanted
                ]
                assert sources, "the forced prefix is one of the pool's"
                found[wanted] += 1
                assert group.texts[number] == policy.decode(sample.tokens)
                assert group.rewards[number] == noisy_reward(group.texts[number], sample.truncated, group.problem)
    assert found[True] > 4 and found[False] > 4


def test_only_tokens_after_the_start_of_a_replay_count_as_generated(policy, random_base, monkeypatch):
    for group in replayed(policy, random_base, monkeypatch):
        own = [len(sample.tokens) - start for sample, start in zip(group.samples, group.replay_starts, strict=True)]
        assert all(tokens >= 1 for tokens in own) and group.generated_tokens == sum(own)
        credit = TSPMO().assign(group.completions, group.rewards, replay_starts=group.replay_starts)
        starts = torch.tensor(group.replay_starts)
        assert (credit.position >= starts[credit.completion]).all()
        originals = group.replay_starts.count(0)
        assert credit.weight.tolist() == pytest.approx([1 / originals] * len(credit)), "G counts the originals"


def test_a_replay_ends_as_any_completion_and_never_over_the_limit(policy, random_base, monkeypatch):
    seen = set()
    for step in range(4):
        for group in replayed(policy, random_base, monkeypatch, step, replay_successes=8, replay_failures=8):
            for sample in group.samples:
                ended = sample.tokens[-1] in policy.eos_token_ids
                assert len(sample.tokens) <= 8 and sample.truncated == (not ended) and (ended or len(sample.tokens) == 8)
                assert len(sample.tokens) == len(sample.log_probs) == len(sample.entropies)
                seen.add(ended)
    assert seen == {True, False}


def test_replays_depend_neither_on_the_memory_setting_nor_on_other_problems(policy, random_base, monkeypatch):
    here = replayed(policy, random_base, monkeypatch)
    narrow = replayed(policy, random_base, monkeypatch, token_budget=64)
    alone = [sample_groups(policy, tiny_config(random_base, "t_spmo_replay"), TASK, [problem], 0)[0] for problem in PROBLEMS]
    for others in (narrow, alone):
        assert [(g.completions, g.replay_starts) for g in others] == [(g.completions, g.replay_starts) for g in here]


def test_noted_log_probs_are_those_that_are_scored_replays_included(policy, random_base, monkeypatch):
    for group in replayed(policy, random_base, monkeypatch, temperature=0.8):
        noted = torch.tensor([value for sample in group.samples for value in sample.log_probs])
        with torch.no_grad():
            scored = token_log_probs(
                policy.model,
                [group.prompt],
                [group.completions],
                [every_token(group.completions)],
                strategy="dense",
                temperature=0.8,
            )
        torch.testing.assert_close(noted, scored, rtol=0, atol=1e-4)  # one by one with a cache against all at once


def test_a_group_without_anything_to_restart_from_stays_as_it_is(policy, random_base, monkeypatch):
    """A completion of one token has no inside; a pool of such gives no replay, and the other pool still does."""
    word = policy.encode(" The answer is 7.")
    short, long = (Completion(tokens, [-1.0] * len(tokens), [1.0] * len(tokens), False) for tokens in ([9], word))
    config = tiny_config(random_base, "t_spmo_replay")
    monkeypatch.setattr(groups, "reward", lambda text, truncated, problem: float(text == policy.decode([9])))
    for samples, starts in ([short, Completion([11], [-1.0], [1.0], False)], 0), ([short, long], 1):
        answers = iter([[samples], [[long]] * 3])
        monkeypatch.setattr(groups, "sample_in_chunks", lambda *args, answers=answers, **named: next(answers)[: len(args[3])])
        (group,) = sample_groups(policy, config, TASK, [SEVEN], 0)
        assert sum(start > 0 for start in group.replay_starts) == starts


def test_only_successes_or_only_failures(policy, random_base, monkeypatch):
    for name, wanted in (("replay_successes", True), ("replay_failures", False)):
        values = {"replay_successes": None, "replay_failures": None, name: 4}
        for group in replayed(policy, random_base, monkeypatch, **values):
            pool = [
                s.tokens
                for s, r, start in zip(group.samples, group.rewards, group.replay_starts, strict=True)
                if not start and (r >= SUCCESS) == wanted
            ]
            for sample, start in zip(group.samples, group.replay_starts, strict=True):
                assert not start or any(tokens[:start] == sample.tokens[:start] for tokens in pool)


@pytest.mark.parametrize(
    "changes", [{"steps": 5}, {"steps": 5, "train_items": 7}, {"steps": 2, "train_items": 7}, {"steps": 0}], ids=str
)
def test_the_trained_problems_are_those_of_the_batches_each_once(random_base, changes):
    config = tiny_config(random_base, **changes)  # 3 problems a step
    task = config.load_task()
    batches = [problem.id for step in range(config.steps) for problem in training_batch(config, task, step)]
    assert [problem.id for problem in trained_problems(config, task)] == list(dict.fromkeys(batches))
