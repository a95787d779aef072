"""Packed and dense scoring against plain transformers, one unpadded forward pass for each credited token."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import QUICK, naive_log_probs
from tiny import (
    BUILDERS,
    COMPLETIONS,
    FIRST_USED,
    LAYERS,
    METHODS,
    PROMPTS,
    VOCABULARY,
    assigned,
    credit_at,
    tiny_qwen2,
    trainable,
    with_lora,
)

from replication.algorithms import GRPO, SGRPO, TSPMO
from replication.scoring import log_probs, pack_groups, score, token_log_probs

both_strategies = pytest.mark.parametrize("strategy", ["packed", "dense"])
every_architecture = pytest.mark.parametrize("architecture", list(BUILDERS))
# Packing depends on the architecture; the dense reference is the model's own pass, whose positions are given or learned.
every_case = pytest.mark.parametrize(
    ("strategy", "architecture"), [("packed", name) for name in BUILDERS] + [("dense", "qwen2"), ("dense", "gpt2")]
)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])

# Float64 leaves 1e-10 for sums in another order; float32 1e-5 for log-probs of size 1 to 10.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def assert_same(model, prompts, completions, credits, strategy: str, temperature: float = 1.0, dtype=torch.float64) -> None:
    """Values, and the gradient of every trainable parameter under unequal coefficients, equal those of the plain loop."""
    model = model.to(dtype)
    expected = naive_log_probs(model, prompts, completions, credits, temperature)
    actual = token_log_probs(model, prompts, completions, credits, strategy=strategy, temperature=temperature)
    assert actual.shape == expected.shape and actual.dtype == dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[dtype])

    coefficients = torch.linspace(-1.0, 2.0, len(expected), dtype=dtype)
    parameters = trainable(model)
    slopes = [torch.autograd.grad((values * coefficients).sum(), list(parameters.values())) for values in (actual, expected)]
    scale = max(gradient.abs().max().item() for gradient in slopes[1])
    assert scale > 1e-3, "an oracle without gradients compares nothing"
    for name, got, want in zip(parameters, *slopes, strict=True):
        torch.testing.assert_close(
            got, want, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1.0), msg=lambda m, name=name: f"{name}: {m}"
        )


@every_case
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_values_and_lora_gradients_equal_plain_transformers(strategy, architecture, method):
    """Ragged prompts, duplicates, a completion inside another, an empty one and a tied group, in float64."""
    model = with_lora(BUILDERS[architecture]())
    assert_same(model, PROMPTS, COMPLETIONS, assigned(method), strategy)


@every_case
def test_float32_and_eager_attention(strategy, architecture):
    for attention in ("sdpa", "eager"):
        model = with_lora(BUILDERS[architecture](attention))
        assert_same(model, PROMPTS, COMPLETIONS, assigned(GRPO()), strategy, dtype=torch.float32)


@every_case
def test_lora_on_the_last_layer_only(strategy, architecture):
    """Below it nothing is trained, so nothing there may keep a graph; what is trained has the right gradient all the same."""
    model = with_lora(BUILDERS[architecture](), layers=[LAYERS - 1])
    assert all(f".{LAYERS - 1}." in name for name in trainable(model))
    assert_same(model, PROMPTS, COMPLETIONS, assigned(GRPO()), strategy)


@every_case
def test_lora_on_every_second_layer(strategy, architecture):
    """A frozen layer between two adapters still hands the gradient down."""
    model = with_lora(BUILDERS[architecture](), layers=[0, LAYERS - 1])
    assert not any(f".{LAYERS - 2}." in name for name in trainable(model))
    assert_same(model, PROMPTS, COMPLETIONS, assigned(GRPO()), strategy)


@every_architecture
def test_below_the_first_adapter_no_graph_is_kept(architecture):
    """What a block gives on has a gradient function from the first block with an adapter on, and none before it."""
    model = with_lora(BUILDERS[architecture](), layers=[LAYERS - 1])
    body = model.get_base_model().base_model
    blocks = body.h if architecture == "gpt2" else body.layers
    kept = []
    for block in blocks:
        block.register_forward_hook(lambda _, __, output: kept.append((output[0] if isinstance(output, tuple) else output).grad_fn))
    token_log_probs(model, PROMPTS, COMPLETIONS, assigned(GRPO()))
    assert [function is not None for function in kept] == [False] * (LAYERS - 1) + [True]


@both_strategies
def test_without_an_adapter_every_weight_has_its_gradient(strategy):
    """Full fine-tuning: the output layer and the embeddings too, tied or not."""
    for tied in (False, True):
        assert_same(tiny_qwen2(tie_word_embeddings=tied), PROMPTS, COMPLETIONS, assigned(SGRPO(1, 0.5, 3)), strategy)


@both_strategies
@pytest.mark.parametrize("temperature", [0.5, 0.7, 3.0])
def test_temperature_divides_the_logits(strategy, temperature):
    assert_same(with_lora(tiny_qwen2()), PROMPTS, COMPLETIONS, assigned(GRPO()), strategy, temperature)


@both_strategies
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_no_sampler_has_is_refused(strategy, temperature):
    with pytest.raises(ValueError, match="temperature"):
        token_log_probs(tiny_qwen2(), PROMPTS, COMPLETIONS, assigned(GRPO()), strategy=strategy, temperature=temperature)


@both_strategies
def test_values_come_in_the_order_of_the_credits(strategy):
    """Rows in any order, the same row twice, groups in the order given."""
    model = tiny_qwen2().double()
    places = [(3, 4), (0, 6), (0, 0), (3, 0), (1, 1), (0, 0), (3, 1)]
    credits = [credit_at([(4, 2), (0, 0)]), credit_at(places), credit_at([(1, 1), (1, 0)])]
    with torch.no_grad():
        actual = token_log_probs(model, PROMPTS, COMPLETIONS, credits, strategy=strategy)
        torch.testing.assert_close(actual, naive_log_probs(model, PROMPTS, COMPLETIONS, credits), rtol=0, atol=1e-10)


@both_strategies
def test_no_credit_at_all(strategy):
    """Every group tied: an empty, differentiable result, and the model is not run."""
    model = with_lora(tiny_qwen2())
    model.forward = model.get_base_model().forward = None
    for prompts, completions in ((PROMPTS, COMPLETIONS), ([], [])):
        empty = [credit_at([]) for _ in prompts]
        values = token_log_probs(model, prompts, completions, empty, strategy=strategy)
        assert values.shape == (0,) and values.dtype == torch.float32
        values.sum().backward()
    double = token_log_probs(tiny_qwen2().double(), PROMPTS, COMPLETIONS, [credit_at([])] * 3, strategy=strategy)
    assert double.dtype == torch.float64


@both_strategies
@pytest.mark.parametrize("place", [(1, 0), (0, 0), (1, 6)], ids=["first", "shared first", "last"])
def test_a_single_credited_token(strategy, place):
    """The first token is predicted by the prompt alone; the last needs all tokens before it and not itself."""
    assert_same(with_lora(BUILDERS["llama"]()), [[5, 6]], [[[7], [8, 8, 9, 9, 8, 9, 4]]], [credit_at([place])], strategy)


@every_case
@every_dtype
def test_a_prompt_and_a_completion_of_one_token(strategy, architecture, dtype):
    assert_same(with_lora(BUILDERS[architecture]()), [[5]], [[[7]]], [credit_at([(0, 0)])], strategy, dtype=dtype)


@every_case
@every_dtype
def test_a_very_deep_trie(strategy, architecture, dtype):
    """One branch of 120 tokens, and another that leaves it at the very end; credit at the start, in the middle, at the end."""
    deep = [4 + i % 7 for i in range(120)]
    group = [deep, [*deep[:118], 12, 12]]
    credits = [credit_at([(0, 0), (0, 60), (0, 119), (1, 118), (1, 119)])]
    assert_same(with_lora(BUILDERS[architecture]()), [[5, 6]], [group], credits, strategy, dtype=dtype)


@every_case
@every_dtype
def test_a_very_wide_trie(strategy, architecture, dtype):
    """All 15 first tokens and under each of them 4 second ones: 75 nodes of which only the first 15 are ever read."""
    group = [[a, b] for a in range(FIRST_USED, VOCABULARY) for b in range(4, 8)]
    rewards = torch.tensor([float((a * b) % 3 == 0) for a, b in group])
    credits = assigned(TSPMO(), [group], [rewards])
    assert_same(with_lora(BUILDERS[architecture]()), [[5]], [group], credits, strategy, dtype=dtype)


_tokens = st.integers(FIRST_USED, FIRST_USED + 2)


@st.composite
def scored_batches(draw: st.DrawFn):
    """Random tries over three tokens, with ragged prompts and any places credited, in any order."""
    prompts, completions, credits = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        prompts.append(draw(st.lists(_tokens, min_size=1, max_size=5)))
        group = draw(st.lists(st.lists(_tokens, max_size=7), min_size=1, max_size=5))
        places = [(i, t) for i, completion in enumerate(group) for t in range(len(completion))]
        completions.append(group)
        credits.append(credit_at(draw(st.lists(st.sampled_from(places), max_size=8)) if places else []))
    return prompts, completions, credits


@functools.cache
def shared_model(architecture: str) -> torch.nn.Module:
    return with_lora(BUILDERS[architecture]()).double()


@every_case
@QUICK
@given(batch=scored_batches())
def test_random_tries(strategy, architecture, batch):
    prompts, completions, credits = batch
    if any(len(credit) for credit in credits):
        assert_same(shared_model(architecture), prompts, completions, credits, strategy)


# --------------------------------------------------------------------------------------- budgets: never a new number


def test_logits_in_chunks_are_the_same_numbers(monkeypatch):
    """A limit of two positions' logits: values and gradients through the recomputed chunks."""
    monkeypatch.setattr(log_probs, "MAX_LOGIT_BYTES", VOCABULARY * 4 * 2)
    assert_same(with_lora(tiny_qwen2()), PROMPTS, COMPLETIONS, assigned(GRPO()), "packed", temperature=0.7)
    # Full fine-tuning: the output layer inside the chunks is trained as well.
    assert_same(tiny_qwen2(), PROMPTS, COMPLETIONS, assigned(GRPO()), "packed")


@pytest.mark.parametrize("positions", [1, 2, 5])
def test_logits_are_never_larger_than_the_limit(monkeypatch, positions):
    """Forward and recomputed in the backward pass; chunks are as large as they may be, so the limit is reached too."""
    limit = VOCABULARY * 4 * positions
    monkeypatch.setattr(log_probs, "MAX_LOGIT_BYTES", limit)
    model = with_lora(tiny_qwen2())
    sizes = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: sizes.append(logits.numel() * logits.element_size()))
    values = token_log_probs(model, PROMPTS, COMPLETIONS, assigned(GRPO()))
    forward = len(sizes)
    values.sum().backward()
    assert max(sizes) == limit and len(sizes) > forward > 1


@pytest.mark.parametrize("token_budget", [1, 8, 32, 48, 60, 120])
def test_a_small_budget_splits_groups_into_rows_and_rows_into_batches_and_changes_no_number(token_budget):
    """A row shorter than its prompt cannot be had; one completion for each row is the finest split."""
    model, credits = with_lora(tiny_qwen2()), assigned(GRPO())
    whole = token_log_probs(model, PROMPTS, COMPLETIONS, credits)
    split = score(model, PROMPTS, COMPLETIONS, credits, token_budget=token_budget)
    assert torch.allclose(split.log_probs, whole, atol=1e-5)
    assert split.tokens_forwarded >= score(model, PROMPTS, COMPLETIONS, credits).tokens_forwarded
    split.log_probs.sum().backward()


def test_the_counts_are_the_tokens_that_went_through_trunk_and_head():
    model, credits = with_lora(tiny_qwen2()), assigned(GRPO())
    rows = pack_groups(PROMPTS, COMPLETIONS, credits, 4096, width=model.config.hidden_size)
    scores = score(model, PROMPTS, COMPLETIONS, credits)
    assert scores.tokens_forwarded == sum(map(len, rows))
    assert scores.tokens_scored == sum(len(set(row.source.tolist())) for row in rows)
    dense = score(model, PROMPTS, COMPLETIONS, credits, strategy="dense")
    credited = [place for place, credit in enumerate(credits) if len(credit)]
    every = sum(len(PROMPTS[place]) + len(tokens) for place in credited for tokens in COMPLETIONS[place])
    assert dense.tokens_forwarded == dense.tokens_scored == every


def seen_tokens(model, monkeypatch, *arguments) -> int:
    """How many tokens, padding counted, went through the embeddings."""
    counts = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: counts.append(inputs[0].numel()))
    token_log_probs(model, *arguments)
    handle.remove()
    return sum(counts)


def test_nodes_that_no_credited_token_needs_are_not_computed(monkeypatch):
    """The cost follows the credit: two transitions after a shared prefix of 2 need prompt and prefix, not 2 · 22 tokens."""
    group = [[4, 5, 6, *[7] * 19], [4, 5, 8, *[9] * 19]]
    credit = TSPMO().assign(group, torch.tensor([1.0, 0.0]))
    assert len(credit) == 2
    assert seen_tokens(tiny_qwen2(), monkeypatch, [[10, 11, 12]], [group], [credit]) <= 3 + 2
    # And full credit computes each distinct prefix once: prompt, shared prefix, two branches without their last tokens.
    everything = GRPO().assign(group, torch.tensor([1.0, 0.0]))
    assert seen_tokens(tiny_qwen2(), monkeypatch, [[10, 11, 12]], [group], [everything]) <= 3 + 2 + 2 * 19


# ---------------------------------------------------------------------------------------------------------- poison


@every_case
def test_poisoned_padding_does_not_leak(strategy, architecture):
    """Whatever pads (ids 0 to 3 never stand in a sequence) has huge, unequal embeddings of one sign, so nothing cancels."""
    model = with_lora(BUILDERS[architecture]())
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[:FIRST_USED] = torch.linspace(1e4, 9e4, FIRST_USED * weight.shape[1]).reshape(FIRST_USED, -1)
    for method in METHODS.values():
        assert_same(model, PROMPTS, COMPLETIONS, assigned(method), strategy)


@both_strategies
def test_the_other_groups_of_a_batch_do_not_matter(strategy):
    """The same group alone, and between longer ones: equal numbers, and exactly no gradient from what has no credit."""
    model = tiny_qwen2().double()
    credits = assigned(GRPO())
    with torch.no_grad():
        together = token_log_probs(model, PROMPTS, COMPLETIONS, credits, strategy=strategy)
        alone = [
            token_log_probs(model, [p], [c], [k], strategy=strategy) for p, c, k in zip(PROMPTS, COMPLETIONS, credits, strict=True)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-10)


@both_strategies
def test_tokens_behind_the_last_credited_one_have_exactly_no_gradient(strategy):
    """Token 12 stands only behind the credit: its embedding gets zero, not something small."""
    model = tiny_qwen2()
    group = [[4, 5, 12, 12], [4, 6, 12]]
    values = token_log_probs(model, [[7, 8]], [group], [credit_at([(0, 1), (1, 1)])], strategy=strategy)
    values.sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient[12].abs().max().item() == 0.0 and gradient[4].abs().max().item() > 0.0
