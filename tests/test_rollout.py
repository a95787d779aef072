"""Rollouts draw from exactly softmax(logits / temperature), and nothing but the seed decides what comes out."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from oracles import naive_log_probs
from scipy import stats
from tiny import BUILDERS, FIRST_USED, VOCABULARY, tiny_qwen2, with_lora
from transformers import AutoConfig, AutoModelForCausalLM

from replication.algorithms import every_token
from replication.errors import Diverged, UserError
from replication.rollout import Completion, generate, rows
from replication.scoring.log_probs import token_log_probs

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12]]
EOS = [2]
every_architecture = pytest.mark.parametrize("architecture", list(BUILDERS))


def draws(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sampled(model, prompts=PROMPTS, seeds=(1, 2, 3), **changes) -> list[list[Completion]]:
    settings = {"group_size": 8, "max_new_tokens": 10, "temperature": 1.0, "eos_token_ids": EOS, "pad_token_id": 0}
    generators = draws(*seeds) if seeds is not None else None
    return generate(model, prompts, generators=generators, **{**settings, **changes})


def tokens_of(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.tokens for completion in group] for group in groups]


@torch.no_grad()
def probabilities(model, context: list[int], temperature: float) -> np.ndarray:
    """softmax(logits / T) behind a context, by one plain forward pass in float64."""
    logits = model(input_ids=torch.tensor([context]), use_cache=False).logits[0, -1].double()
    return torch.softmax(logits / temperature, 0).numpy()


def goodness_of_fit(tokens: list[int], expected: np.ndarray) -> float:
    """P-value of a chi-square test; tokens expected fewer than five times are thrown together."""
    counts = np.bincount(tokens, minlength=len(expected)).astype(float)
    expected = expected * len(tokens)
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_tokens_follow_the_softmax_at_that_temperature(temperature):
    """4,000 completions of a long and of a short (padded) prompt: the first token, and the second behind the commonest first.

    Fixed seed; a right sampler fails at one seed in some hundred, top-k 50, top-p 0.9 or another temperature always.
    """
    # Initialised so that no token has nearly all the mass.
    model = tiny_qwen2(initializer_range=0.1)
    prompts = [PROMPTS[0], PROMPTS[1]]
    groups = sampled(model, prompts, seeds=(4, 5), group_size=4000, max_new_tokens=2, temperature=temperature)
    for prompt, group in zip(prompts, tokens_of(groups), strict=True):
        first = [tokens[0] for tokens in group]
        chances = probabilities(model, prompt, temperature)
        assert chances.max() < 0.9
        assert goodness_of_fit(first, chances) > 1e-3
        common = int(np.bincount([token for token in first if token not in EOS]).argmax())
        second = [tokens[1] for tokens in group if tokens[0] == common]
        assert len(second) > 200
        assert goodness_of_fit(second, probabilities(model, [*prompt, common], temperature)) > 1e-3


def test_completions_of_a_group_and_positions_are_independent():
    """First tokens of neighbouring completions, and first against second token under a constant distribution."""
    model = tiny_qwen2()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    (group,) = tokens_of(sampled(model, [[5]], seeds=(8,), group_size=6000, max_new_tokens=2, eos_token_ids=[]))
    halves = np.array(group) < VOCABULARY // 2
    for first, second in ((halves[:-1:2, 0], halves[1::2, 0]), (halves[:, 0], halves[:, 1])):
        table = [[int(((first == a) & (second == b)).sum()) for b in (True, False)] for a in (True, False)]
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_same_seed_same_bytes_other_seed_others():
    model = tiny_qwen2()
    assert sampled(model) == sampled(model)
    assert tokens_of(sampled(model)) != tokens_of(sampled(model, seeds=(4, 5, 6)))
    # The seeds of a prompt move that prompt alone.
    moved = tokens_of(sampled(model, seeds=(1, 9, 3)))
    assert [a == b for a, b in zip(moved, tokens_of(sampled(model)), strict=True)] == [True, False, True]


@every_architecture
def test_temperature_zero_is_greedy_transformers_and_needs_no_seed(architecture):
    model = BUILDERS[architecture]()
    groups = sampled(model, seeds=None, temperature=0.0, group_size=2, max_new_tokens=12)
    assert groups == sampled(model, temperature=0.0, group_size=2, max_new_tokens=12)
    for prompt, group in zip(PROMPTS, tokens_of(groups), strict=True):
        context = torch.tensor([prompt])
        expected = model.generate(
            context,
            attention_mask=torch.ones_like(context),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=EOS,
            pad_token_id=0,
        )
        assert group == [expected[0, len(prompt) :].tolist()] * 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_models_own_generation_config_is_ignored(temperature):
    """Many models ship top_k, top_p and a penalty: sampling with them would draw from another distribution than is scored."""
    plain, shipped = tiny_qwen2(), tiny_qwen2()
    for name, value in {"top_k": 1, "top_p": 0.1, "temperature": 0.01, "repetition_penalty": 5.0, "do_sample": True}.items():
        setattr(shipped.generation_config, name, value)
    assert sampled(shipped, temperature=temperature) == sampled(plain, temperature=temperature)
    (group,) = tokens_of(sampled(shipped, [[5]], seeds=(0,), group_size=50, max_new_tokens=1))
    assert len({tokens[0] for tokens in group}) > 1


@every_architecture
def test_sharing_and_dropping_rows_changes_nothing(architecture):
    """Against each completion on its own: no cache, no batch, its row of the prompt's uniform numbers inverted token by token."""
    model, eos, group_size, limit = BUILDERS[architecture](), {2, 3, 7}, 8, 20
    groups = sampled(model, group_size=group_size, max_new_tokens=limit, eos_token_ids=sorted(eos))
    for prompt, seed, group in zip(PROMPTS, (1, 2, 3), groups, strict=True):
        uniform = torch.rand((group_size, limit), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for numbers, completion in zip(uniform, group, strict=True):
            tokens: list[int] = []
            for number in numbers:
                with torch.no_grad():
                    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
                share = torch.softmax(logits.double(), -1).cumsum(0)
                tokens.append(int((share <= number * share[-1]).sum()))
                if tokens[-1] in eos:
                    break
            assert completion.tokens == tokens
            assert completion.truncated == (tokens[-1] not in eos)
    lengths = {len(completion.tokens) for group in groups for completion in group}
    assert min(lengths) < 5 < max(lengths)


@every_architecture
def test_a_prompt_draws_the_same_alone_and_in_any_batch(architecture):
    """Left padding of the short prompts changes neither their positions nor what they see."""
    model = BUILDERS[architecture]()
    together = tokens_of(sampled(model))
    alone = [tokens_of(sampled(model, [prompt], seeds=(seed,)))[0] for prompt, seed in zip(PROMPTS, (1, 2, 3), strict=True)]
    assert together == alone
    backwards = tokens_of(sampled(model, PROMPTS[::-1], seeds=(3, 2, 1)))
    assert backwards[::-1] == together


@every_architecture
def test_poisoned_padding_does_not_leak(architecture):
    """The padding id, here one that is never drawn, has a huge embedding: with it or without it the same comes out."""
    outcomes = []
    for poisoned in (False, True):
        model = BUILDERS[architecture]()
        weight = model.get_input_embeddings().weight
        with torch.no_grad():
            if poisoned:
                weight[0] = torch.linspace(1e4, 9e4, weight.shape[1])
        ban(model, [0])
        outcomes.append(tokens_of(sampled(model)))
    assert outcomes[0] == outcomes[1]


def ban(model, tokens: list[int]) -> None:
    """Give these tokens probability exactly zero."""
    bias = torch.zeros(VOCABULARY)
    bias[tokens] = -float("inf")
    model.lm_head.register_forward_hook(lambda _, __, logits: logits + bias)


def test_a_token_of_probability_zero_is_never_drawn():
    """Neither the first nor the last of the vocabulary, where a search in the cumulative sum could run over the edge."""
    model = tiny_qwen2()
    banned = [0, 1, 5, VOCABULARY - 2, VOCABULARY - 1]
    ban(model, banned)
    groups = sampled(model, group_size=300)
    assert not {token for group in groups for completion in group for token in completion.tokens} & set(banned)
    assert all(np.isfinite(c.entropies).all() and np.isfinite(c.log_probs).all() for group in groups for c in group)


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53], ids=["smallest", "largest"])
def test_the_edges_of_the_uniform_numbers_draw_a_possible_token(number, monkeypatch):
    """At exactly 0 a search from the left finds the first token, whatever its probability; near 1 it can run off the end."""
    model = tiny_qwen2()
    banned = [0, 1, VOCABULARY - 1]
    ban(model, banned)
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.full(size, number, dtype=torch.float64))
    tokens = {token for group in tokens_of(sampled(model)) for completion in group for token in completion}
    assert tokens and tokens <= set(range(VOCABULARY)) - set(banned)


@pytest.mark.parametrize(("adapted", "temperature"), [(False, 1.0), (True, 0.7)])
def test_recorded_log_probs_and_entropies_are_those_that_scoring_finds(adapted, temperature):
    """What is sampled is what is scored: same temperature, same adapter. float32, so 1e-4."""
    model = with_lora(tiny_qwen2()) if adapted else tiny_qwen2()
    groups = sampled(model, temperature=temperature)
    completions = tokens_of(groups)
    credits = [every_token(group) for group in completions]
    recorded = torch.tensor([value for group in groups for completion in group for value in completion.log_probs])
    with torch.no_grad():
        naive = naive_log_probs(model, PROMPTS, completions, credits, temperature)
        scored = token_log_probs(model, PROMPTS, completions, credits, temperature=temperature)
    torch.testing.assert_close(recorded, naive, rtol=0, atol=1e-4)
    torch.testing.assert_close(recorded, scored, rtol=0, atol=1e-4)
    first = groups[0][0]
    for t in range(len(first.tokens)):
        p = probabilities(model, PROMPTS[0] + first.tokens[:t], temperature)
        assert first.entropies[t] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)


def test_recorded_numbers_stop_where_the_tokens_stop():
    for group in sampled(tiny_qwen2(), eos_token_ids=[2, 3, 7]):
        for completion in group:
            assert 1 <= len(completion.tokens) <= 10
            assert len(completion.tokens) == len(completion.log_probs) == len(completion.entropies)


def test_any_of_the_end_tokens_ends_a_completion_and_belongs_to_it():
    ends = [2, 3, 7]
    groups = sampled(tiny_qwen2(), group_size=64, eos_token_ids=ends)
    last = {completion.tokens[-1] for group in groups for completion in group if not completion.truncated}
    assert last == set(ends)
    for completion in (completion for group in groups for completion in group):
        assert not set(completion.tokens[:-1]) & set(ends)
        assert completion.truncated == (completion.tokens[-1] not in ends)
        assert len(completion.tokens) == 10 or not completion.truncated


def test_an_end_at_the_last_place_allowed_is_no_truncation():
    """Some completions of one token are EOS: they ended by themselves, though they reached the limit."""
    (group,) = sampled(tiny_qwen2(), [[5]], seeds=(3,), group_size=200, max_new_tokens=1, eos_token_ids=[2, 3, 7, 9, 11])
    assert {completion.truncated for completion in group} == {True, False}
    assert all(completion.truncated == (completion.tokens[0] not in (2, 3, 7, 9, 11)) for completion in group)


def test_padding_that_is_an_end_token_does_not_shorten_prompts_or_completions():
    """Many base models pad with EOS: the padding of the short prompts must not pass for an end."""
    model = tiny_qwen2()
    assert tokens_of(sampled(model, pad_token_id=2)) == tokens_of(sampled(model, pad_token_id=0))


def test_a_stop_criterion_ends_rows_and_sees_only_generated_tokens():
    seen = []

    def stop(tokens: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(tokens.shape))
        return tokens[:, -1] == 9

    groups = sampled(tiny_qwen2(), group_size=32, stop=stop)
    completions = [completion for group in groups for completion in group]
    assert any(completion.tokens[-1] == 9 and not completion.truncated for completion in completions)
    assert not any(9 in completion.tokens[:-1] for completion in completions)
    assert [shape[1] for shape in seen] == list(range(1, len(seen) + 1))


def test_a_distinct_prefix_is_run_once_for_a_group():
    """The prefill sees each prompt once, not G times, and each later step the distinct prefixes, not the completions."""
    model = tiny_qwen2()
    counts = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: counts.append(tuple(inputs[0].shape)))
    groups = sampled(model, group_size=16, max_new_tokens=3, eos_token_ids=[])
    # Tokens 1 and 2 are read to draw 2 and 3; the third is never read.
    distinct = [sum(len({tuple(c.tokens[:depth]) for c in group}) for group in groups) for depth in (1, 2)]
    assert distinct[0] < distinct[1] < 48
    assert counts == [(3, 5), (distinct[0], 1), (distinct[1], 1)]


@every_architecture
def test_rows_of_a_fixed_shape_give_the_same_completions(architecture):
    """With the passes that would be compiled in eager mode. The second batch finds the cache of the first."""
    model = BUILDERS[architecture]()
    with torch.compiler.set_stance("force_eager"):
        for prompts, seeds in ((PROMPTS, (1, 2, 3)), (PROMPTS[1:], (7, 8)), ([[3] * 130], (9,)), (PROMPTS[:2], (5, 6))):
            same_completions(sampled(model, prompts, seeds, compiled=True), sampled(model, prompts, seeds))


def same_completions(found: list[list[Completion]], expected: list[list[Completion]]) -> None:
    assert tokens_of(found) == tokens_of(expected)
    for group, same in zip(found, expected, strict=True):
        for one, other in zip(group, same, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
            assert (one.truncated, one.stopped) == (other.truncated, other.stopped)


@pytest.mark.slow
def test_compiled_passes_give_the_same_completions():
    """Also those of a model that comes later, and of an adapter that has moved since."""
    for seed in (0, 1):
        model = with_lora(tiny_qwen2(seed=seed, num_hidden_layers=1))
        for _ in range(2):
            same_completions(sampled(model, compiled=True), sampled(model))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.add_(0.3)


def test_a_model_whose_fixed_shapes_were_not_checked_is_refused_in_one_line():
    """GPT-Neo takes the place of a token from the length of the cache: in a fixed one it sampled from another distribution."""
    shape = {"vocab_size": 50, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    config = AutoConfig.for_model("gpt_neo", **shape)
    with pytest.raises(UserError, match="gpt_neo.*compile_sampling=false"):
        sampled(AutoModelForCausalLM.from_config(config).eval(), compiled=True)


def test_no_compiler_is_one_line(monkeypatch):
    model = tiny_qwen2()
    monkeypatch.setattr(model, "get_compiled_call", lambda _: fails)
    with pytest.raises(UserError, match="no g\\+\\+.*compile_sampling=false"):
        sampled(model, compiled=True)


def fails(**_):
    raise RuntimeError("no g++ found")


def test_a_fixed_cache_stays_where_it_is_until_a_batch_needs_a_larger_one():
    """A recorded CUDA graph reads and writes at its address, and each new one is recorded anew."""
    model, places = tiny_qwen2(), []
    with torch.compiler.set_stance("force_eager"):
        for prompts, seeds in ((PROMPTS, (1, 2, 3)), (PROMPTS[:1], (1,)), (PROMPTS, (1, 2, 3)), ([[5] * 80] * 4, (1, 2, 3, 4))):
            sampled(model, prompts, seeds, compiled=True)
            keys = rows._kept[model][2].layers[0].keys
            places.append((keys.data_ptr(), *keys.shape))
    assert len(set(places[:3])) == 1
    assert places[3][1] > places[0][1] and places[3][3] > places[0][3]


def test_the_global_random_state_and_the_model_stay_as_they_are():
    model = with_lora(tiny_qwen2())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    generator = draws(1)[0]
    state = generator.get_state()
    settings = {"group_size": 4, "max_new_tokens": 5, "temperature": 1.0, "eos_token_ids": EOS, "pad_token_id": 0}
    generate(model, [[5]], generators=[generator], **settings)
    assert not torch.equal(state, generator.get_state())
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1]) and before[2] == random.getstate()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_bad_input_is_refused():
    model = tiny_qwen2()
    with pytest.raises(ValueError, match="generator"):
        sampled(model, seeds=None)
    with pytest.raises(ValueError, match="generator"):
        sampled(model, seeds=(1, 2))
    with pytest.raises(ValueError, match="empty"):
        sampled(model, [[5], []], seeds=(1, 2))
    for temperature in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            sampled(model, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_stop_the_run_instead_of_drawing_something(temperature):
    model = tiny_qwen2()
    with torch.no_grad():
        model.lm_head.weight[FIRST_USED] = float("nan")
    with pytest.raises(Diverged):
        sampled(model, temperature=temperature)
