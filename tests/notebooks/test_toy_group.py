"""The pictures of one group: what they say is what the methods return, and the toy group is what the notebooks say of it."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from tiny import tiny_qwen2

from replication.algorithms import GRPO, SGRPO, TSPMO, TokenCredit
from replication.notebooks import (
    TOY,
    ShownGroup,
    credit_map,
    gradient_table,
    keep_probabilities,
    keep_probability,
    toy_gradient,
    trie,
    work_map,
)
from replication.notebooks.toy_figures import computed_tokens
from replication.objective import surrogate_loss
from replication.randomness import stream
from replication.scoring import score
from replication.tasks import extract_answer

METHODS = [GRPO(), SGRPO(2, 0.3, 4), TSPMO()]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def test_the_toy_rewards_are_those_of_the_task():
    for pieces, reward in zip(TOY.pieces, TOY.rewards.tolist(), strict=True):
        assert float(extract_answer("".join(pieces)) == 5) == reward
    assert [[TOY.vocabulary[token] for token in tokens] for tokens in TOY.tokens] == [list(pieces) for pieces in TOY.pieces]


def test_the_advantages_worked_by_hand_in_the_notebooks():
    credit = TSPMO().assign(TOY.tokens, TOY.rewards)
    assert credit.advantage.tolist() == pytest.approx([-1 / 6, 1 / 6, 1 / 2, -1 / 3, -1 / 2, 1 / 2])
    assert GRPO().assign(TOY.tokens, TOY.rewards).advantage[0].item() == pytest.approx(0.5 / ((1 / 3) ** 0.5 + 1e-4))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_the_gradient_of_the_toy_table_is_that_of_the_formula(method):
    credit = method.assign(TOY.tokens, TOY.rewards, stream(0, "test"))
    logits = torch.randn(len(TOY.vocabulary) + 1, len(TOY.vocabulary), dtype=torch.float64, generator=stream(0, "logits"))
    logits.requires_grad_()
    loss, _ = surrogate_loss(torch.log_softmax(logits, dim=-1)[TOY.places(credit)], [credit])
    loss.backward()
    by_hand = torch.zeros_like(logits)
    for i in range(len(credit)):
        tokens, position = TOY.tokens[credit.completion[i]], int(credit.position[i])
        row = tokens[position - 1] + 1 if position else 0
        factor = credit.weight[i].double() * credit.advantage[i].double()
        by_hand[row] -= factor * torch.softmax(logits[row].detach(), dim=-1)
        by_hand[row, tokens[position]] += factor
    assert torch.allclose(by_hand, -logits.grad, atol=1e-12)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_token_is_drawn_and_only_credited_ones_are_coloured(method):
    credit = method.assign(TOY.tokens, TOY.rewards, stream(0, "test"))
    for by in ("advantage", "weight"):
        figure = credit_map(TOY, credit, title="a title", by=by)
        boxes = [patch.get_facecolor() for patch in figure.axes[0].patches]
        assert len(boxes) == TOY.size
        assert sum(colour[:3] != (1.0, 1.0, 1.0) for colour in boxes) == len(credit)
        assert "a title" in texts(figure)
        assert png(figure) == png(credit_map(TOY, credit, title="a title", by=by))
    with pytest.raises(ValueError, match="by must be"):
        credit_map(TOY, credit, title="", by="colour")


def test_the_trie_shows_counts_means_and_advantages():
    credit = TSPMO().assign(TOY.tokens, TOY.rewards)
    shown = texts(trie(TOY, credit, title="a title"))
    labels = {text.split("\n")[0]: text.split("\n")[1] for text in shown if "\n" in text}
    assert labels == {"9": "-0.17", "5 .": "+0.50", "- 4 =": "+0.17", "+ 4 = 13 .": "-0.33", "6 .": "-0.50"}
    assert [text for text in shown if text.isdigit()].count("4") == 1  # all four answers pass the root alone
    assert "0.33" in shown


def test_a_group_without_credit_is_drawn_in_grey():
    empty = TokenCredit.empty()
    assert not any("\n" in text for text in texts(trie(TOY, empty, title="")))
    png(credit_map(TOY, empty, title=""))


def test_a_credited_token_inside_a_chain_keeps_its_own_edge():
    pieces = (("a", "b", "c"),)
    group = ShownGroup("?", pieces, ((0, 1, 2),), torch.tensor([1.0]))
    credit = TokenCredit.from_arrays([0], [1], [0.25], [1.0])
    assert "b c\n+0.25" in texts(trie(group, credit, title=""))


def test_no_edge_of_a_trie_runs_over_a_node_or_the_label_of_another_edge():
    """Straight edges did both on real answers: the long edge of a leaf ran through the node of a short edge beside it."""
    words = ["a rain is gentle and late", "a warm sun moves", "a warm storm moves", "a calm moon", "a sky is warm", "no"]
    pieces = tuple(tuple(text.split()) for text in words)
    vocabulary = sorted({piece for own in pieces for piece in own})
    tokens = tuple(tuple(map(vocabulary.index, own)) for own in pieces)
    figure = trie(ShownGroup("?", pieces, tokens, torch.zeros(6)), TokenCredit.empty(), title="")
    axis, renderer = figure.axes[0], figure.canvas.get_renderer()
    lines = [line.get_path().interpolated(50).vertices for line in axis.lines if len(line.get_xdata()) > 1]
    nodes = np.array([(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if len(line.get_xdata()) == 1])
    assert len(lines) == len(nodes) - 1 == 8
    for line in lines:
        others = [node for node in nodes if not any(np.allclose(node, end) for end in (line[0], line[-1]))]
        assert all(np.hypot(*(line - node).T).min() > 0.2 for node in others)
    boxes = [text.get_window_extent(renderer) for text in axis.texts if text.get_bbox_patch()]
    touching = [sum(box.count_contains(axis.transData.transform(line)) > 0 for line in lines) for box in boxes]
    assert touching == [1] * 8, "each label lies on its own edge alone"


def test_dollar_signs_of_a_completion_are_no_formula():
    group = ShownGroup("?", (("$", "5", "$x_$"),), ((0, 1, 2),), torch.tensor([1.0]))
    png(credit_map(group, TokenCredit.empty(), title="costs $5 or $6"))
    png(trie(group, TokenCredit.empty(), title="costs $5 or $6"))


@pytest.mark.parametrize("rule", [SGRPO(2, 0.3, 4), SGRPO(0, 0.5, 2), SGRPO(3, 0.6, None), SGRPO(2, 0.7, 2), SGRPO(0, 0.0, None)])
def test_keep_probabilities_are_those_of_every_possible_draw(rule):
    length = 7
    exact = np.zeros(length)
    for draws in itertools.product((0, 1), repeat=length):
        chance, kept = 1.0, 0
        for heads in draws:
            chance *= rule.keep_probability if heads else 1 - rule.keep_probability
        for t, heads in enumerate(draws):
            let_in = (t < rule.cutoff or heads) and (rule.max_kept_tokens is None or kept < rule.max_kept_tokens)
            kept += let_in
            exact[t] += chance * let_in
    assert keep_probabilities(rule, length) == pytest.approx(exact, abs=1e-12)


def test_the_rule_and_its_draws_are_drawn_together():
    rule, times = SGRPO(2, 0.3, 4), 400
    draws = rule.assign([list(range(8))] * times, torch.arange(times) % 2.0, stream(0, "test"))
    figure = keep_probability(rule, 8, draws, times)
    drawn = figure.axes[0].lines[0].get_ydata()
    assert np.abs(drawn - 100 * keep_probabilities(rule, 8)).max() < 12  # four standard errors of 400 draws
    png(gradient_table(TOY, torch.zeros(10, 9), title=""))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_the_picture_of_computed_tokens_counts_what_scoring_counts(method):
    credit = method.assign(TOY.tokens, TOY.rewards, stream(0, "test"))
    computed, shared = computed_tokens(TOY, credit)
    prompt = [0]
    forwarded = score(tiny_qwen2(), [prompt], [[list(tokens) for tokens in TOY.tokens]], [credit]).tokens_forwarded
    assert len(computed) == forwarded - len(prompt) and not computed & shared
    # A token is read if and only if a later token of its answer is credited.
    last = {i: max(credit.position[credit.completion == i].tolist(), default=-1) for i in range(len(TOY.tokens))}
    assert computed | shared >= {(i, t) for i, end in last.items() for t in range(end)}
    assert f"{len(computed)} go through the model" in " ".join(texts(work_map(TOY, credit)))
    png(work_map(TOY, credit))


def test_every_number_of_a_gradient_table_can_be_read_on_its_cell():
    """Black numbers once stood on dark blue cells: a contrast of 4.5 is what WCAG 2.1 asks of text."""
    values = torch.linspace(-1, 1, 90).reshape(10, 9)
    axis = gradient_table(TOY, values, title="").axes[0]
    image = axis.images[0]
    cells = image.to_rgba(image.get_array())[..., :3]
    assert len(axis.texts) == 90
    for text in axis.texts:
        column, row = text.get_position()
        light, dark = sorted((luminance(to_rgb(text.get_color())), luminance(cells[row, column])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def luminance(rgb) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in map(float, rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_toy_gradient_of_no_credit_is_zero():
    assert not toy_gradient(GRPO().assign([[0], [1]], torch.ones(2))).any()


def test_the_loss_can_rise_while_the_model_improves():
    """What the walkthroughs say of the loss: 0 for every group under GRPO; under T-SPMO it depends on which answers are right."""

    def loss(method, rewards) -> float:
        credit = method.assign(TOY.tokens, torch.tensor(rewards))
        return -(credit.weight * credit.advantage).sum().item()

    for rewards in itertools.product((0.0, 1.0), repeat=4):
        assert loss(GRPO(), rewards) == pytest.approx(0, abs=1e-6)
    assert loss(TSPMO(), (1.0, 0.0, 0.0, 1.0)) == pytest.approx(-1 / 24)
    assert loss(TSPMO(), (1.0, 1.0, 1.0, 0.0)) == pytest.approx(1 / 8)
