"""What scoring refuses, what it must not touch, and the models that it must not pack."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracles import naive_log_probs
from tiny import COMPLETIONS, PROMPTS, VOCABULARY, assigned, credit_at, exact, tiny_qwen2, with_lora

from replication.algorithms import GRPO
from replication.scoring.log_probs import token_log_probs

both_strategies = pytest.mark.parametrize("strategy", ["packed", "dense"])


def sliding_qwen2() -> torch.nn.Module:
    return tiny_qwen2(use_sliding_window=True, sliding_window=3, max_window_layers=0)


def gpt_neox() -> torch.nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPTNeoXForCausalLM(config).eval()


def mistral() -> torch.nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        sliding_window=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return exact(MistralForCausalLM(config)).eval()


@pytest.mark.parametrize("build", [sliding_qwen2, gpt_neox, mistral])
def test_an_unsafe_model_is_scored_densely_with_one_warning(build):
    """Never a wrong number, and one warning for a model, not one for each of a thousand steps."""
    model = build().double()
    credits = assigned(GRPO())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            actual = token_log_probs(model, PROMPTS, COMPLETIONS, credits, strategy="packed")
    assert len([warning for warning in caught if "dense" in str(warning.message)]) == 1
    torch.testing.assert_close(actual, naive_log_probs(model, PROMPTS, COMPLETIONS, credits), rtol=0, atol=1e-10)


def test_a_second_unsafe_model_of_the_same_kind_warns_for_itself():
    """A warning kept by its text told only the first of two models apart, and the second ran densely without a word."""
    for _ in range(2):
        with pytest.warns(UserWarning, match="dense"):
            token_log_probs(sliding_qwen2(), PROMPTS, COMPLETIONS, assigned(GRPO()), strategy="packed")


@both_strategies
def test_a_safe_model_warns_of_nothing(strategy):
    model = with_lora(tiny_qwen2())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_log_probs(model, PROMPTS, COMPLETIONS, assigned(GRPO()), strategy=strategy)


# ------------------------------------------------------------------------------------------------------------ input


@both_strategies
def test_bad_input_is_refused(strategy):
    model = tiny_qwen2()
    one = credit_at([(0, 0)])
    for prompts, completions, credits in (
        ([[5], [6]], [[[7]]], [one]),
        ([[5]], [[[7]]], [one, one]),
        ([[5]], [[[7]]], [credit_at([(0, 1)])]),
        ([[5]], [[[7], [8, 8]]], [credit_at([(0, 1)])]),
        ([[5]], [[[7]]], [credit_at([(1, 0)])]),
        ([[5]], [[[7]]], [credit_at([(0, -1)])]),
        ([[5]], [[[7]]], [credit_at([(-1, 0)])]),
        ([[]], [[[7]]], [one]),
    ):
        with pytest.raises(ValueError):
            token_log_probs(model, prompts, completions, credits, strategy=strategy)
    with pytest.raises(ValueError, match="strategy"):
        token_log_probs(model, [[5]], [[[7]]], [one], strategy="sparse")


@both_strategies
def test_model_inputs_and_random_state_stay_as_they_are(strategy):
    model = with_lora(tiny_qwen2())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    prompts, completions = [list(p) for p in PROMPTS], [[list(c) for c in g] for g in COMPLETIONS]
    before, training = torch.random.get_rng_state(), model.training
    token_log_probs(model, prompts, completions, assigned(GRPO()), strategy=strategy).sum().backward()
    assert prompts == PROMPTS and completions == COMPLETIONS
    assert torch.equal(before, torch.random.get_rng_state()) and model.training == training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@both_strategies
def test_without_gradients_nothing_keeps_a_graph(strategy):
    with torch.no_grad():
        values = token_log_probs(with_lora(tiny_qwen2()), PROMPTS, COMPLETIONS, assigned(GRPO()), strategy=strategy)
    assert not values.requires_grad
