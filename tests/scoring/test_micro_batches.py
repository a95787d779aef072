"""Micro-batches: every group with credit in exactly one part, parts as large as allowed, the gradient the sum over them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import COMPLETIONS, METHODS, PROMPTS, assigned, credit_at, tiny_qwen2, trainable, with_lora

from replication.objective import surrogate_loss
from replication.scoring.log_probs import micro_batches, token_log_probs

SIZES = st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(0, 30), min_size=1, max_size=4), st.booleans()), max_size=12)


@given(groups=SIZES, limit=st.integers(1, 120))
def test_parts_hold_each_group_with_credit_once_in_order_and_within_the_limit(groups, limit):
    prompts = [[5] * prompt for prompt, _, _ in groups]
    completions = [[[6] * length for length in lengths] for _, lengths, _ in groups]
    credits = [credit_at([(0, 0)] if credited else []) for _, _, credited in groups]
    tokens = [prompt + sum(lengths) for prompt, lengths, _ in groups]
    parts = list(micro_batches(prompts, completions, credits, limit))
    assert [index for part in parts for index in part] == [index for index, (_, _, credited) in enumerate(groups) if credited]
    sizes = [sum(tokens[index] for index in part) for part in parts]
    assert all(len(part) == 1 or size <= limit for part, size in zip(parts, sizes, strict=True))
    # As large as allowed: the first group of the next part would not have fitted.
    assert all(size + tokens[following[0]] > limit for size, following in zip(sizes, parts[1:], strict=False))


def test_what_fills_a_part_exactly_fits():
    batch = [[5] * 4] * 3, [[[6] * 6]] * 3, [credit_at([(0, 0)])] * 3
    assert list(micro_batches(*batch, 20)) == [[0, 1], [2]]
    assert list(micro_batches(*batch, 19)) == [[0], [1], [2]]


def test_nothing_credited_is_no_part():
    assert list(micro_batches([[1]], [[[2]]], [credit_at([])], 64)) == [] == list(micro_batches([], [], [], 64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", ["packed", "dense"])
def test_the_gradient_does_not_depend_on_the_split(method, strategy):
    model = with_lora(tiny_qwen2().double())
    credits = assigned(METHODS[method])
    assert [len(credit) > 0 for credit in credits] == [True, True, False], "the tied group counts in the mean but in no part"

    def gradient(limit: int) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad(set_to_none=True)
        total = 0.0
        for part in micro_batches(PROMPTS, COMPLETIONS, credits, limit):
            batch = [[column[i] for i in part] for column in (PROMPTS, COMPLETIONS, credits)]
            loss, _ = surrogate_loss(token_log_probs(model, *batch, strategy=strategy), batch[2], groups=len(credits))
            loss.backward()
            total += loss.item()
        return total, [parameter.grad.clone() for parameter in trainable(model).values()]

    assert len(list(micro_batches(PROMPTS, COMPLETIONS, credits, 1))) == 2
    (whole, at_once), (split, in_parts) = gradient(10_000), gradient(1)
    assert split == pytest.approx(whole, abs=1e-12)
    assert any(value.abs().max() > 1e-6 for value in at_once)
    for here, there in zip(at_once, in_parts, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-12)
