"""Pictures of one group: the credit of its tokens, the tokens that are computed, S-GRPO's keep probability, a table of gradients.

They draw what the methods return and know no method by name. Blue credit makes a token more likely, orange less likely; a white
token does not enter the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from replication.algorithms import SGRPO, TokenCredit
from replication.notebooks.toy_group import ShownGroup, Toy, keep_probabilities
from replication.report import figure_style
from replication.scoring import pack_groups

#: Orange to white to blue: told apart by the colour-blind, and the two ends differ in print too.
CREDIT_COLOURS = LinearSegmentedColormap.from_list("credit", ["#D55E00", "#ffffff", "#0072B2"])
_INCH_PER_LETTER, _LINE, _WIDEST = 0.078, 0.30, 8.4


@contextmanager
def drawing(width: float, height: float, **options: Any) -> Iterator[Figure]:
    """A new figure in the style of the report, in which a dollar sign of a completion is a dollar sign."""
    with figure_style(), rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(width, height), **options)
        FigureCanvasAgg(figure)
        yield figure


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
        return CREDIT_COLOURS(scale(share)), "#333333", _ink(scale(share))

    word = "advantage" if by == "advantage" else "weight · advantage"
    note = f"colour: {word}, from -{limit:.2g} (orange) to +{limit:.2g} (blue); white: not in the loss"
    return _token_rows(group, look, title, note)


def _ink(place: float) -> str:
    """White or black, whichever has the higher contrast (WCAG 2.1) on the colour at ``place`` from 0 to 1 of CREDIT_COLOURS."""
    rgb = np.array(CREDIT_COLOURS(float(place))[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def work_map(group: ShownGroup, credit: TokenCredit) -> Figure:
    """The tokens of a group that packed scoring computes, and those it need not compute.

    Blue: computed, because a credited token is predicted from it. Grey: the same prefix stands in an answer above and is computed
    there. White: skipped, because no later token of the answer is credited. A frame marks a credited token. The title counts the
    computed tokens.
    """
    computed, shared = computed_tokens(group, credit)
    credited = set(zip(credit.completion.tolist(), credit.position.tolist(), strict=True))

    def look(completion: int, position: int) -> tuple[Any, str, str]:
        edge = "#D55E00" if (completion, position) in credited else "#cccccc"
        if (completion, position) in computed:
            return "#3b6ea5", edge, "#ffffff"
        return ("#dcdcdc", edge, "#555555") if (completion, position) in shared else ("#ffffff", edge, "#888888")

    title = f"{len(credit)} of {group.size} tokens are credited, {len(computed)} go through the model"
    note = "blue: computed; grey: shared with an answer above; white: skipped; orange frame: credited"
    return _token_rows(group, look, title, note)


def computed_tokens(group: ShownGroup, credit: TokenCredit) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """(answer, position) of the tokens that packed scoring computes, and of those whose prefix is computed in an earlier answer."""
    prefixes: set[tuple[int, ...]] = set()
    for row in pack_groups([[0]], [[list(tokens) for tokens in group.tokens]], [credit], group.size + 1):
        prefix: list[tuple[int, ...]] = []  # the generated tokens up to each token of the row, whose prompt is one token
        for parent, token in zip(row.parent.tolist(), row.token.tolist(), strict=True):
            prefix.append((*prefix[parent], token) if parent >= 0 else ())
        prefixes.update(prefix)
    computed, shared, seen = set(), set(), set()
    for index, tokens in enumerate(group.tokens):
        for position in range(len(tokens)):
            own = tuple(tokens[: position + 1])
            if own in prefixes:
                (shared if own in seen else computed).add((index, position))
                seen.add(own)
    return computed, shared


def _token_rows(group: ShownGroup, look: Callable[[int, int], tuple[Any, str, str]], title: str, note: str) -> Figure:
    """The answers as rows of boxes; ``look(answer, position)`` gives face, edge and ink."""
    lines = sum(_lines(pieces) for pieces in group.pieces)
    longest = max((sum(map(_width, pieces)) for pieces in group.pieces), default=0.0)
    wide = 1.2 + min(max(longest, 5.2), _WIDEST)
    with drawing(wide, 0.75 + _LINE * lines + 0.28) as figure:
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


def keep_probability(rule: SGRPO, length: int, draws: TokenCredit | None = None, groups: int = 1) -> Figure:
    """S-GRPO's keep probability by position, and, if given, the share of ``groups`` draws over answers of that length."""
    chance = keep_probabilities(rule, length)
    with drawing(7.2, 2.9, layout="constrained") as figure:
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
    with drawing(5.8, 4.6, layout="constrained") as figure:
        axis = figure.subplots()
        share = Normalize(-limit, limit)(values)
        axis.imshow(share, cmap=CREDIT_COLOURS, vmin=0, vmax=1, aspect="auto")
        for row, column in np.argwhere(np.abs(values) > 0.0005):
            number, ink = f"{values[row, column]:+.2f}", _ink(share[row, column])
            axis.text(column, row, number, fontsize=7, ha="center", va="center", color=ink)
        axis.set_xticks(range(len(group.vocabulary)), group.vocabulary)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_xlabel("next token")
        axis.set_ylabel("token before it")
        axis.grid(visible=False)
        axis.set_title(title, loc="left")
    return figure
