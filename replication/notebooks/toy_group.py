"""Pictures of one group: its tokens with their credit, what of them is computed, and S-GRPO's keep probability by position.

They draw what the methods return and know no method by name. Blue credit makes a token more likely, orange less likely; a white
token does not enter the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import stats
from torch import Tensor

from replication.algorithms import SGRPO, TokenCredit
from replication.report.style import style
from replication.scoring.packing import PackedRow, pack_groups

if TYPE_CHECKING:
    from replication.groups import Group
    from replication.models import Policy

#: Orange to white to blue: told apart by the colour-blind, and the two ends differ in print too.
CREDIT_COLOURS = LinearSegmentedColormap.from_list("credit", ["#D55E00", "#ffffff", "#0072B2"])
_INCH_PER_LETTER, _LINE, _WIDEST = 0.078, 0.30, 8.4


@dataclass(frozen=True)
class ShownGroup:
    """A group of answers with the text of each token.

    Attributes:
        question: the prompt.
        pieces: for each answer the texts of its tokens.
        tokens: the same as ids.
        rewards: (G,) float.
    """

    question: str
    pieces: tuple[tuple[str, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    rewards: Tensor

    @property
    def size(self) -> int:
        """Generated tokens of the whole group."""
        return sum(map(len, self.tokens))

    @classmethod
    def of(cls, policy: Policy, group: Group) -> ShownGroup:
        """A sampled group; line breaks and ends of sequence are made visible."""

        def text(token: int) -> str:
            if token in policy.eos_token_ids:
                return "<eos>"
            return policy.tokenizer.decode([token]).replace("\n", "↵") or "?"

        pieces = tuple(tuple(map(text, tokens)) for tokens in group.completions)
        question = policy.decode(group.prompt)
        return cls(question, pieces, tuple(map(tuple, group.completions)), group.rewards)


@dataclass(frozen=True)
class Toy(ShownGroup):
    """The group of four answers that is followed by hand, over a vocabulary small enough for a table.

    The toy policy is a table of logits: one row for each symbol that can stand before (row 0: nothing, the answer begins), one
    column for each symbol that can follow.
    """

    vocabulary: tuple[str, ...] = ()

    def places(self, credit: TokenCredit) -> tuple[Tensor, Tensor]:
        """(row, column) in the table of logits of every credited token."""
        rows, columns = [], []
        for completion, position in zip(credit.completion.tolist(), credit.position.tolist(), strict=True):
            tokens = self.tokens[completion]
            rows.append(tokens[position - 1] + 1 if position else 0)
            columns.append(tokens[position])
        return torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long)


def _toy() -> Toy:
    answers = ("9 - 4 = 5 .", "9 + 4 = 13 .", "9 - 4 = 6 .", "5 .")
    pieces = tuple(tuple(answer.split()) for answer in answers)
    vocabulary = ("9", "4", "5", "6", "13", "+", "-", "=", ".")
    tokens = tuple(tuple(vocabulary.index(piece) for piece in answer) for answer in pieces)
    question = "Ann has 9 shells. Sam has 4 fewer. How many has Sam?"
    return Toy(question, pieces, tokens, torch.tensor([1.0, 0.0, 0.0, 1.0]), vocabulary)


#: Four answers: right, wrong operator, wrong result, right at once.
TOY = _toy()


def credit_map(group: ShownGroup, credit: TokenCredit, *, title: str, by: str = "advantage") -> Figure:
    """The answers as rows of tokens, the credited ones coloured.

    Args:
        group, credit: what a method returned for this group.
        title: above the picture.
        by: "advantage", or "weight" for weight · advantage, a token's whole share of the group's surrogate.
    """
    value = {(c, p): a for c, p, a in zip(credit.completion.tolist(), credit.position.tolist(), _shares(credit, by), strict=True)}
    limit = max((abs(number) for number in value.values()), default=1.0) or 1.0
    scale = Normalize(-limit, limit)

    def look(completion: int, position: int) -> tuple[Any, str, str]:
        share = value.get((completion, position))
        if share is None:
            return "#ffffff", "#cccccc", "#888888"
        return CREDIT_COLOURS(scale(share)), "#333333", "#ffffff" if abs(scale(share) - 0.5) > 0.33 else "#000000"

    word = "advantage" if by == "advantage" else "weight · advantage"
    note = f"colour: {word}, from -{limit:.2g} (orange) to +{limit:.2g} (blue); white: not in the loss"
    return _token_rows(group, look, title, note)


def work_map(group: ShownGroup, credit: TokenCredit, *, title: str | None = None) -> Figure:
    """Which tokens of a group go through the model in packed scoring, and which need not.

    Dark: computed, read by a token that is credited. Grey: the same prefix is computed once, in an answer above. White: skipped,
    since no token behind it is credited. A frame marks a credited token. The title counts what is computed, as the ledger does.
    """
    computed, shared = computed_tokens(group, credit)
    credited = set(zip(credit.completion.tolist(), credit.position.tolist(), strict=True))

    def look(completion: int, position: int) -> tuple[Any, str, str]:
        edge = "#D55E00" if (completion, position) in credited else "#cccccc"
        if (completion, position) in computed:
            return "#3b6ea5", edge, "#ffffff"
        return ("#dcdcdc", edge, "#555555") if (completion, position) in shared else ("#ffffff", edge, "#888888")

    title = title or f"{len(credit)} of {group.size} tokens are credited, {len(computed)} go through the model"
    note = "blue: computed; grey: shared with an answer above; white: skipped; orange frame: credited"
    return _token_rows(group, look, title, note)


def computed_tokens(group: ShownGroup, credit: TokenCredit) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """(answer, position) of the tokens that packed scoring computes, and of those whose prefix an earlier answer has computed."""
    rows = pack_groups([[0]], [[list(tokens) for tokens in group.tokens]], [credit])
    prefixes = {prefix for row in rows for prefix in _prefixes(row)}
    computed, shared, seen = set(), set(), set()
    for index, tokens in enumerate(group.tokens):
        for position in range(len(tokens)):
            prefix = tuple(tokens[: position + 1])
            if prefix in prefixes:
                (shared if prefix in seen else computed).add((index, position))
                seen.add(prefix)
    return computed, shared


def _prefixes(row: PackedRow) -> list[tuple[int, ...]]:
    """The generated prefix that each token of a row ends, behind a prompt of one token."""
    found: list[tuple[int, ...]] = []
    for parent, token in zip(row.parent.tolist(), row.token.tolist(), strict=True):
        found.append((*found[parent], token) if parent >= 0 else ())
    return found


def _token_rows(group: ShownGroup, look: Callable[[int, int], tuple[Any, str, str]], title: str, note: str) -> Figure:
    """The answers as rows of boxes; ``look(answer, position)`` gives face, edge and ink."""
    lines = sum(_lines(pieces) for pieces in group.pieces)
    longest = max((sum(map(_width, pieces)) for pieces in group.pieces), default=0.0)
    wide = 1.2 + min(max(longest, 5.2), _WIDEST)
    with style(), rc_context({"text.parse_math": False}):  # a dollar sign in a completion is a dollar sign
        figure = Figure(figsize=(wide, 0.75 + _LINE * lines + 0.28))
        FigureCanvasAgg(figure)
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        axis.set_xlim(0, wide)
        axis.set_ylim(figure.get_figheight(), 0)
        axis.text(0.1, 0.3, title, fontsize=11, va="center")
        top = 0.62
        for index, pieces in enumerate(group.pieces):
            axis.text(0.1, top + 0.13, f"R = {group.rewards[index].item():g}", fontsize=9, va="center", color="#333333")
            top = _draw_tokens(axis, pieces, [look(index, position) for position in range(len(pieces))], top)
        axis.text(0.1, top + 0.12, note, fontsize=8.5, va="center", color="#555555")
    return figure


def _shares(credit: TokenCredit, by: str) -> list[float]:
    if by not in ("advantage", "weight"):
        raise ValueError(f'by must be "advantage" or "weight", not {by!r}')
    return (credit.advantage if by == "advantage" else credit.weight * credit.advantage).tolist()


def _width(piece: str) -> float:
    return _INCH_PER_LETTER * max(len(piece.strip()), 1) + 0.13


def _lines(pieces: Sequence[str]) -> int:
    lines, x = 1, 0.0
    for piece in pieces:
        if x + _width(piece) > _WIDEST:
            lines, x = lines + 1, 0.0
        x += _width(piece)
    return lines


def _draw_tokens(axis: Axes, pieces: Sequence[str], looks: Sequence[tuple[Any, str, str]], top: float) -> float:
    x = 0.0
    for piece, (face, edge, ink) in zip(pieces, looks, strict=True):
        width = _width(piece)
        if x + width > _WIDEST:
            x, top = 0.0, top + _LINE
        box = Rectangle((0.95 + x + 0.01, top), width - 0.04, 0.25, facecolor=face, edgecolor=edge, linewidth=1.0)
        axis.add_patch(box)
        axis.text(0.95 + x + width / 2 - 0.01, top + 0.13, piece.strip() or "·", fontsize=9, family="DejaVu Sans Mono",
                  ha="center", va="center", color=ink)  # fmt: skip
        x += width
    return top + _LINE


def keep_probabilities(rule: SGRPO, length: int) -> np.ndarray:
    """Chance of each position of an answer of ``length`` tokens to enter the loss under S-GRPO's rule.

    Formula: 1 for t < alpha; otherwise P · Pr(Binomial(t - alpha, P) < k - alpha), the chance of being let in before the cap k.

    Returns:
        (length,) float64.
    """
    position = np.arange(length)
    later = position - rule.cutoff
    chance = np.where(later < 0, 1.0, rule.keep_probability)
    if rule.max_kept_tokens is None:
        return chance
    room = rule.max_kept_tokens - rule.cutoff
    return np.where(later < 0, 1.0, chance * stats.binom.cdf(room - 1, np.maximum(later, 0), rule.keep_probability))


def keep_probability(rule: SGRPO, length: int, draws: TokenCredit | None = None, groups: int = 1) -> Figure:
    """S-GRPO's keep probability by position, and, if given, the share of ``groups`` draws over answers of that length."""
    chance = keep_probabilities(rule, length)
    with style(), rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        axis.bar(np.arange(length), 100 * chance, color="#0072B2", alpha=0.75, label="the rule")
        if draws is not None:
            seen = np.bincount(draws.position.numpy(), minlength=length)[:length] / groups
            axis.plot(np.arange(length), 100 * seen, "o", color="#D55E00", markersize=4, label="drawn")
            axis.legend(loc="upper right")
        cap = "no cap" if rule.max_kept_tokens is None else f"cap {rule.max_kept_tokens}"
        title = f"cutoff {rule.cutoff}, keep probability {rule.keep_probability:g}, {cap}"
        axis.set_title(f"{title}: {100 * chance.mean():.0f} % of {length} tokens", loc="left")
        axis.set_xlabel("position in the answer (0 = first generated token)")
        axis.set_ylabel("kept (%)")
        axis.set_ylim(0, 105)
    return figure


def gradient_table(group: Toy, gradient: Tensor, *, title: str) -> Figure:
    """The gradient of the objective at the toy policy's table of logits: what one step would raise (blue) and lower (orange)."""
    values = gradient.detach().numpy()
    limit = float(np.abs(values).max()) or 1.0
    rows = ("start", *group.vocabulary)
    with style(), rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(5.8, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        axis.imshow(values, cmap=CREDIT_COLOURS, vmin=-limit, vmax=limit, aspect="auto")
        for row, column in np.argwhere(np.abs(values) > 0.0005):
            axis.text(column, row, f"{values[row, column]:+.2f}", fontsize=7, ha="center", va="center")
        axis.set_xticks(range(len(group.vocabulary)), group.vocabulary)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_xlabel("next token")
        axis.set_ylabel("token before it")
        axis.grid(visible=False)
        axis.set_title(title, loc="left")
    return figure
