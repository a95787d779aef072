"""The prefix trie of a group, drawn: counts and mean rewards on its nodes, the credited advantages on its edges."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from replication.algorithms import TokenCredit, build_trie
from replication.notebooks.toy_figures import CREDIT_COLOURS, drawing
from replication.notebooks.toy_group import ShownGroup

#: Width in inches of the part of an edge that slants. The rest is level, so that no edge runs over a node or another edge.
_SLANT = 0.4


def trie(group: ShownGroup, credit: TokenCredit, *, title: str) -> Figure:
    """The prefix trie of a group: on its nodes how many answers pass and their mean reward, on its edges the credited advantage.

    Chains in which no answer parts and nothing is credited are drawn as one edge with all their tokens.
    """
    built = build_trie(group.tokens)
    paths = np.split(built.path, np.cumsum([len(tokens) for tokens in group.tokens])[:-1])
    # The rewards of the answers that pass a node; all of them pass the root, -1.
    passing: dict[int, list[float]] = {-1: group.rewards.tolist()}
    words = {}
    for path, pieces, reward in zip(paths, group.pieces, group.rewards.tolist(), strict=True):
        for node, piece in zip(path.tolist(), pieces, strict=True):
            passing.setdefault(node, []).append(reward)
            words[node] = piece.strip() or "·"
    rows = zip(credit.completion.tolist(), credit.position.tolist(), credit.advantage.tolist(), strict=True)
    credited = {int(paths[completion][position]): advantage for completion, position, advantage in rows}
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(built.parent.tolist()):
        children.setdefault(parent, []).append(node)
    return _draw_trie(_segments(children, credited, words), credited, passing, title)


def _segments(
    children: dict[int, list[int]], credited: dict[int, float], words: dict[int, str]
) -> dict[int, list[tuple[int, str]]]:
    """parent -> [(end node, text)], with chains of single uncredited children joined."""
    found: dict[int, list[tuple[int, str]]] = {}
    waiting = [-1]
    while waiting:
        parent = waiting.pop()
        for child in children.get(parent, []):
            text, end = [words[child]], child
            while len(children.get(end, [])) == 1 and children[end][0] not in credited:
                end = children[end][0]
                text.append(words[end])
            found.setdefault(parent, []).append((end, " ".join(text)))
            credited.setdefault(end, credited.get(child, 0.0))
            waiting.append(end)
    return found


def _draw_trie(
    segments: dict[int, list[tuple[int, str]]], credited: dict[int, float], passing: dict[int, list[float]], title: str
) -> Figure:
    place: dict[int, tuple[float, float]] = {}
    edges: list[tuple[int, int, str]] = []
    leaves = 0

    def lay_out(node: int, x: float) -> None:
        nonlocal leaves
        below = segments.get(node, [])
        for end, text in below:
            edges.append((node, end, text))
            letters = max(len(_shorter(text)), 5)  # an advantage has five
            lay_out(end, x + _SLANT + 0.075 * letters + 0.45)
        if below:
            y = float(np.mean([place[end][1] for end, _ in below]))
        else:
            y, leaves = float(leaves), leaves + 1
        place[node] = (x, y)

    lay_out(-1, 0.4)
    width = max(7.6, max(x for x, _ in place.values()) + 1.1)
    limit = max((abs(a) for a in credited.values()), default=1.0) or 1.0
    scale = Normalize(-limit, limit)
    with drawing(width, 0.62 * leaves + 1.15) as figure:
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        axis.set_xlim(0, width)
        axis.set_ylim(leaves - 0.1, -1.1)
        axis.text(0.1, -0.85, title, fontsize=11, va="center")
        for parent, end, text in edges:
            (x0, y0), (x1, y1) = place[parent], place[end]
            advantage = credited.get(end, 0.0)
            colour = "#bbbbbb" if advantage == 0 else CREDIT_COLOURS(scale(advantage))
            bent = [x0, x0 + _SLANT, x1], [y0, y1, y1]
            axis.plot(*bent, color="#999999", linewidth=4.2 if advantage else 1.4, zorder=1)
            if advantage:
                axis.plot(*bent, color=colour, linewidth=3.2, zorder=1.1)
            label = _shorter(text) + (f"\n{advantage:+.2f}" if advantage else "")
            axis.text((x0 + _SLANT + x1) / 2 - 0.05, y1, label, fontsize=8.5, ha="center", va="center", zorder=3,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2})  # fmt: skip
        for node, (x, y) in place.items():
            axis.plot(x, y, "o", markersize=15, color="white", markeredgecolor="#333333", zorder=4)
            axis.text(x, y, str(len(passing[node])), fontsize=8.5, ha="center", va="center", zorder=5)
            mean = f"{np.mean(passing[node]):.2f}"
            axis.text(x, y + 0.33, mean, fontsize=7.5, ha="right", va="center", color="#555555", zorder=5)
        note = (
            "circle: answers that pass, below it their mean reward; edge: next tokens, and the advantage of the first of them "
            "if it is credited"
        )
        axis.text(0.1, leaves - 0.3, note, fontsize=8, va="center", color="#555555")
    return figure


def _shorter(text: str, longest: int = 24) -> str:
    return text if len(text) <= longest else text[: longest // 2] + " … " + text[-longest // 2 :]
