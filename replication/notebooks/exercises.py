"""The exercises of the walkthroughs: each takes a reader's answer and says whether it is right, and if not what is off.

Nothing here holds a solution: what is right is computed by the package when an answer is checked. ``None`` is an exercise that
nobody has tried yet, and an answer of the wrong kind is a wrong answer: a checking cell never raises.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from replication.algorithms import GRPO, SGRPO, TSPMO, TokenCredit
from replication.notebooks.toy_group import TOY, keep_probabilities
from replication.objective import surrogate_loss
from replication.randomness import stream
from replication.tasks import extract_answer

Credits = Callable[..., TokenCredit]


@dataclass(frozen=True)
class Checked:
    """What became of an answer; ``right`` is None for an exercise that is not tried yet."""

    right: bool | None
    message: str

    def __repr__(self) -> str:
        return self.message


def exercise(check: Callable[[Any], str | None]) -> Callable[[Any], Checked]:
    """Make a checking function of one that returns None for a right answer and otherwise what is off."""

    @functools.wraps(check)
    def checked(answer: Any) -> Checked:
        if answer is None:
            return Checked(None, "not solved yet")
        try:
            wrong = check(answer)
        except Exception as error:  # an answer may be a reader's own function
            wrong = f"this kind of answer cannot be checked ({type(error).__name__}: {error})"
        return Checked(wrong is None, "right" if wrong is None else f"not yet: {wrong}")

    return checked


def _far(answer: float, right: float, digits: float = 0.005) -> bool:
    return not abs(float(answer) - right) <= digits


def toy_gradient(credit: TokenCredit) -> Tensor:
    """What a step raises and lowers in the toy policy's table of logits, all of them 0: minus the loss's gradient, (10, 9)."""
    logits = torch.zeros(len(TOY.vocabulary) + 1, len(TOY.vocabulary), requires_grad=True)
    loss, _ = surrogate_loss(torch.log_softmax(logits, dim=-1)[TOY.places(credit)], [credit])
    if not len(credit):
        return torch.zeros_like(logits)
    loss.backward()
    return -logits.grad


def _groups(count: int) -> list[tuple[list[list[int]], Tensor]]:
    """Groups of four answers that share beginnings, of several lengths, with rewards that mostly differ."""
    found = []
    for number in range(count):
        chance = stream(number, "exercise")
        lengths = torch.randint(2, 7, (4,), generator=chance).tolist()
        answers = [torch.randint(0, 2, (length,), generator=chance).tolist() for length in lengths]
        found.append((answers, torch.randint(0, 2, (4,), generator=chance).float()))
    return found


# 01_grpo_under_lora ---------------------------------------------------------------------------------------------------


@exercise
def one_more_right(answer: float) -> str | None:
    """The advantage of the second answer once the third is right as well."""
    credit = GRPO().assign(TOY.tokens, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    if _far(answer, credit.advantage[credit.completion == 1][0].item()):
        return "three of four are right, so the mean is 3/4; divide by the root of (the squared deviations' sum / 3)"
    return None


@exercise
def other_ddof(answer: float) -> str | None:
    """The factor by which all advantages grow under ddof=0."""
    without, more = (GRPO(ddof=ddof, eps=0.0).assign(TOY.tokens, TOY.rewards).advantage[0].item() for ddof in (1, 0))
    if not _far(answer, without / more):
        return "that is the factor the other way round"
    return "compare the standard deviations: one divides by G - 1, one by G" if _far(answer, more / without) else None


@exercise
def long_answer(answer: Sequence[float]) -> str | None:
    """The weight of a token of the fourth answer at ten tokens, under both denominators."""
    tokens = [*TOY.tokens[:3], tuple(range(10))]
    for given, denominator in zip(answer, ("completion", "group_tokens"), strict=True):
        credit = GRPO(denominator=denominator).assign(tokens, TOY.rewards)
        if _far(given, credit.weight[credit.completion == 3][0].item(), 0.0005):
            return f'the weight under "{denominator}" is another one: count what it divides by'
    return None


@exercise
def silent_start(answer: Sequence[float]) -> str | None:
    """Four rewards, not all equal, under which GRPO does not move the first token's row at all."""
    rewards = torch.tensor([float(reward) for reward in answer])
    if rewards.shape != (4,):
        return "give four rewards, one for each answer"
    credit = GRPO().assign(TOY.tokens, rewards)
    if not len(credit):
        return "these rewards tie, so nothing is moved anywhere: find four that differ"
    row = toy_gradient(credit)[0]
    if row.abs().max() > 1e-6:
        return f"the row of the start still moves, by up to {row.abs().max().item():.3f}: three answers begin with 9 and one with 5"
    return None


@exercise
def undivided(answer: Credits) -> str | None:
    """A method (completions, rewards) -> TokenCredit: GRPO with A = R - mean R, not divided by the standard deviation."""
    for completions, rewards in _groups(20):
        full, own = GRPO().assign(completions, rewards), answer(completions, rewards)
        if len(own) != len(full):
            return f"{len(own)} tokens are credited instead of {len(full)} (rewards {rewards.tolist()})"
        if not len(full):
            continue
        if not torch.allclose(own.weight, full.weight):
            return "the weights should stay those of GRPO"
        if not torch.allclose(own.advantage, (rewards - rewards.mean())[full.completion], atol=1e-6):
            return f"for the rewards {rewards.tolist()} the advantages are not R - mean R"
    return None


# 02_s_grpo ------------------------------------------------------------------------------------------------------------


@exercise
def third_position(answer: float) -> str | None:
    """The chance that position 3 is kept under P = 0.5, cutoff 1, cap 2."""
    if _far(answer, keep_probabilities(SGRPO(1, 0.5, 2), 4)[3], 0.0005):
        return "the cap leaves room for one random token: it must be let in, and none of those before it"
    return None


@exercise
def a_rule_of_forty_percent(answer: SGRPO) -> str | None:
    """A rule that keeps about 40 % of answers of 26 tokens, about half of them behind the cutoff."""
    chance = keep_probabilities(answer, 26)
    share, behind = chance.mean(), chance[answer.cutoff :].sum() / max(chance.sum(), 1e-9)
    if abs(share - 0.4) > 0.02:
        return f"it keeps {100 * share:.0f} %, not about 40 %"
    if abs(behind - 0.5) > 0.06:
        return f"{100 * behind:.0f} % of what it keeps stands behind the cutoff, not about half"
    return None


@exercise
def who_loses(answer: Sequence[int]) -> str | None:
    """Which toy answers (1 to 4) lose influence under the denominator "completion", cutoff 2, P = 0.3, cap 4, draw 0."""
    sums = []
    for denominator in ("kept", "completion"):
        credit = SGRPO(2, 0.3, 4, denominator=denominator).assign(TOY.tokens, TOY.rewards, stream(0, "walkthrough", 0))
        sums.append(torch.zeros(4).index_add_(0, credit.completion, credit.weight))
    losing = {index + 1 for index in range(4) if sums[1][index] < sums[0][index] - 1e-6}
    if set(answer) != losing:
        return f"{len(losing)} of the four lose; sum the weights of each answer under both denominators"
    return None


@exercise
def same_direction(answer: SGRPO) -> str | None:
    """A rule that drops tokens, whose mean gradient over all draws points exactly along GRPO's."""
    if answer.cutoff == 0 and answer.keep_probability in (0.0, 1.0):
        return "this rule draws nothing: choose a keep probability between 0 and 1"
    lengths, times = (2, 6), 4000
    mean = _mean_weights(lambda tokens, rewards, chance: answer.assign(tokens, rewards, chance), lengths, times)
    factors = torch.cat([mean[length] * length for length in lengths])
    if (factors.max() - factors.min()) > 0.06:
        return (
            f"measured over {times} draws, a token's mean weight is between {factors.min().item():.2f} and "
            f"{factors.max().item():.2f} of its weight in GRPO, depending on where it stands: it must be the same everywhere"
        )
    return None


@exercise
def unbiased(answer: Callable[..., TokenCredit]) -> str | None:
    """(rule, completions, rewards, generator) -> TokenCredit, whose weights average to exactly GRPO's, also with cutoff and cap."""
    lengths, times, rule = (2, 6), 4000, SGRPO(2, 0.3, 4, denominator="completion")
    one = rule.assign(TOY.tokens, TOY.rewards, stream(0, "exercise"))
    own = answer(rule, TOY.tokens, TOY.rewards, stream(0, "exercise"))
    if len(own) != len(one):
        return f"{len(own)} tokens are credited where the rule keeps {len(one)}: change the weights alone"
    mean = _mean_weights(lambda tokens, rewards, chance: answer(rule, tokens, rewards, chance), lengths, times)
    for length in lengths:
        off = (mean[length] * length - 1).abs()
        if off.max() > 0.15:
            return (
                f"at position {int(off.argmax())} of answers of {length} tokens the mean weight is "
                f"{(mean[length] * length)[off.argmax()].item():.2f} of GRPO's"
            )
    return None


def _mean_weights(assign: Credits, lengths: Sequence[int], times: int) -> dict[int, Tensor]:
    """For answers of each length: the mean over draws of a position's weight, times the group's size."""
    found = {}
    for length in lengths:
        tokens = [list(range(length))] * times
        credit = assign(tokens, torch.arange(times) % 2.0, stream(0, "exercise", length))
        sums = torch.zeros(length, dtype=torch.float64).index_add_(0, credit.position, credit.weight.double())
        found[length] = sums  # times draws of weight 1 / (times · length) if all were kept
    return found


# 03_t_spmo ------------------------------------------------------------------------------------------------------------


@exercise
def a_fifth_answer(answer: Sequence[float]) -> str | None:
    """With "9 + 4 = 5 ." (reward 1) added: A("5" | start), and how many transitions are credited."""
    fifth = tuple(map(TOY.vocabulary.index, ("9", "+", "4", "=", "5", ".")))
    credit = TSPMO().assign([*TOY.tokens, fifth], torch.cat([TOY.rewards, torch.ones(1)]))
    advantage, count = answer
    if _far(advantage, credit.advantage[(credit.completion == 3) & (credit.position == 0)].item()):
        return "the advantage is another one: now three of five answers are right"
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
        return "these rewards tie: nothing is credited at all"
    if set(positions) != {0}:
        return f"transitions at the positions {sorted(set(positions))} are credited: behind the first choice all must fare alike"
    return None


@exercise
def along_an_answer(answer: Sequence[float]) -> str | None:
    """For each toy answer the sum of the advantages of all transitions on its way."""
    right = (TOY.rewards - TOY.rewards.mean()).tolist()  # the means telescope
    if len(answer) != 4:
        return "give four sums, one for each answer"
    off = [index + 1 for index, (given, sum_) in enumerate(zip(answer, right, strict=True)) if _far(given, sum_)]
    if off:
        return f"the sum along answer {off[0]} is another one; a transition that several answers share counts for each of them"
    return None


@exercise
def blind(answer: Sequence[str]) -> str | None:
    """Three or more answers of at least four tokens, right (5) and wrong, of which T-SPMO credits first tokens alone."""
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
    """A method like T-SPMO that counts a transition once for *each* answer that takes it."""
    for completions, rewards in [(TOY.tokens, TOY.rewards), *_groups(20)]:
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
        if any(_far(a, right[place], 1e-5) for place, a in zip(given, own.advantage.tolist(), strict=True)):
            return "an advantage is not that of its transition"
    return None
