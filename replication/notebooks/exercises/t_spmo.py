"""The exercises of 03_t_spmo."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from replication.algorithms import TSPMO
from replication.notebooks.exercises.check import Credits, exercise, groups, is_far
from replication.notebooks.toy_group import TOY
from replication.tasks import extract_answer


@exercise
def a_fifth_answer(answer: Sequence[float]) -> str | None:
    """With "9 + 4 = 5 ." (reward 1) added: A("5" | start), and how many transitions are credited."""
    fifth = tuple(map(TOY.vocabulary.index, ("9", "+", "4", "=", "5", ".")))
    credit = TSPMO().assign([*TOY.tokens, fifth], torch.cat([TOY.rewards, torch.ones(1)]))
    advantage, count = answer
    if is_far(advantage, credit.advantage[(credit.completion == 3) & (credit.position == 0)].item()):
        return "the advantage is different: now three of five answers are right"
    if count != len(credit):
        return f"it is not {count} transitions: after 9 the choice of + or - has become one between equals"
    return None


@exercise
def two_answers(answer: Sequence[str]) -> str | None:
    """The next tokens that are credited if answers 1 and 3 are the only ones."""
    tokens = [TOY.tokens[0], TOY.tokens[2]]
    credit = TSPMO().assign(tokens, TOY.rewards[[0, 2]])
    places = zip(credit.completion.tolist(), credit.position.tolist(), strict=True)
    right = {TOY.vocabulary[tokens[c][p]] for c, p in places}
    if set(answer) != right:
        return f"{len(right)} transitions are credited: look for the one place where the two part"
    return None


@exercise
def only_the_first(answer: Sequence[float]) -> str | None:
    """Rewards of 0 and 1 under which the first choice of the toy group is credited and nothing else."""
    rewards = torch.tensor([float(reward) for reward in answer])
    if rewards.shape != (4,) or not set(rewards.tolist()) <= {0.0, 1.0}:
        return "give four rewards, each 0 or 1"
    positions = TSPMO().assign(TOY.tokens, rewards).position.tolist()
    if not positions:
        return "these rewards tie: nothing is credited"
    if set(positions) != {0}:
        found = f"transitions at the positions {sorted(set(positions))} are credited"
        return f"{found}: all answers that begin with 9 need the same reward"
    return None


@exercise
def along_an_answer(answer: Sequence[float]) -> str | None:
    """For each toy answer the sum of the advantages of all its transitions."""
    right = (TOY.rewards - TOY.rewards.mean()).tolist()  # the means telescope
    if len(answer) != 4:
        return "give four sums, one for each answer"
    off = [index + 1 for index, (given, sum_) in enumerate(zip(answer, right, strict=True)) if is_far(given, sum_)]
    if off:
        return f"the sum along answer {off[0]} is different; a transition that several answers share counts for each of them"
    return None


@exercise
def blind(answer: Sequence[str]) -> str | None:
    """Three or more answers of at least four tokens, right (5) and wrong, such that T-SPMO credits only first tokens."""
    words = [text.split() for text in answer]
    if len(words) < 3 or any(len(own) < 4 for own in words):
        return "give three or more answers, each a text of at least four tokens with blanks between them"
    vocabulary = sorted({word for own in words for word in own})
    rewards = torch.tensor([float(extract_answer("".join(own)) == 5) for own in words])
    positions = TSPMO().assign([[vocabulary.index(word) for word in own] for own in words], rewards).position.tolist()
    if not positions:
        return "all are right, or all are wrong: nothing is credited"
    if set(positions) != {0}:
        return f"tokens at the positions {sorted(set(positions))} are credited: let the answers part at once"
    return None


@exercise
def every_time(answer: Credits) -> str | None:
    """A method like T-SPMO, with its weights 1/G, that counts a transition once for *each* answer that takes it."""
    for completions, rewards in [(TOY.tokens, TOY.rewards), *groups(20)]:
        once = TSPMO().assign(completions, rewards)
        places = zip(once.completion.tolist(), once.position.tolist(), strict=True)
        known = {tuple(completions[c][: p + 1]): a for (c, p), a in zip(places, once.advantage.tolist(), strict=True)}
        right = {
            (i, t): known[tuple(tokens[: t + 1])]
            for i, tokens in enumerate(completions)
            for t in range(len(tokens))
            if tuple(tokens[: t + 1]) in known
        }
        own = answer(completions, rewards)
        given = list(zip(own.completion.tolist(), own.position.tolist(), strict=True))
        if sorted(given) != sorted(right):
            return f"{len(given)} tokens are credited instead of {len(right)} for the answers {list(map(list, completions))}"
        if any(is_far(a, right[place], 1e-5) for place, a in zip(given, own.advantage.tolist(), strict=True)):
            return "an advantage is not that of its transition"
        if any(is_far(weight, 1 / len(completions), 1e-5) for weight in own.weight.tolist()):
            return f"the weight of each row should be that of T-SPMO, 1 / G = 1 / {len(completions)}"
    return None
