"""Gradients per method and their signal against their noise, held to plain loops and to sums over every possible draw."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from replication.measure.gradients import Redraws, batch_product, flat_credit, surrogate_gradients, update_snr


def test_flat_credit_is_weight_times_advantage_at_its_place():
    for method in tiny.METHODS.values():
        for completions, credit in zip(tiny.COMPLETIONS, tiny.assigned(method), strict=True):
            wanted = [[0.0] * len(tokens) for tokens in completions]
            for i, t, a, w in zip(credit.completion, credit.position, credit.advantage, credit.weight, strict=True):
                wanted[i][t] += float(a) * float(w)
            found = flat_credit(credit, [len(tokens) for tokens in completions])
            assert found.dtype == np.float64 and found == pytest.approx(sum(wanted, []), abs=1e-12)


@pytest.mark.parametrize("strategy", ["dense", "packed"])
def test_gradients_are_those_of_one_completion_at_a_time(strategy):
    model = tiny.with_lora(tiny.tiny_qwen2()).double()
    parameters = tiny.trainable(model)
    prompt, completions = tiny.PROMPTS[0], tiny.COMPLETIONS[0]
    rng = np.random.default_rng(0)
    coefficients = rng.normal(size=(2, sum(map(len, completions))))
    policy, group = SimpleNamespace(model=model, trainable=parameters), SimpleNamespace(prompt=prompt, completions=completions)
    found = surrogate_gradients(policy, group, coefficients, strategy=strategy, temperature=0.7)
    for row, coefficient in enumerate(coefficients):
        total, place = torch.zeros((), dtype=torch.float64), 0
        for tokens in completions:
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1] / 0.7
            log_probs = logits.log_softmax(-1)[range(len(tokens)), tokens]
            total = total + (torch.from_numpy(coefficient[place : place + len(tokens)]) * log_probs).sum()
            place += len(tokens)
        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(parameters.values()))])
        assert wanted.norm() > 0
        torch.testing.assert_close(found[row], wanted, rtol=1e-8, atol=1e-10)


def test_redraws_keep_mean_variance_and_covariance_and_count_a_tied_group_as_zero():
    draws = torch.randn((6, 2, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws[3] = 0
    kept = Redraws(2, 5)
    for number, gradients in enumerate(draws):
        kept.add(None if number == 3 else gradients, gradients / 2)
    numpy = draws.numpy()
    centred = numpy - numpy.mean(0)
    assert kept.count == 6 and kept.mean.numpy() == pytest.approx(numpy.mean(0))
    assert kept.variance() == pytest.approx(numpy.var(0, ddof=1).sum(1))
    assert kept.covariance() == pytest.approx((centred * centred[:, :1]).sum((0, 2)) / 5)
    assert kept.decisive == pytest.approx(np.square(numpy).sum((0, 2)) / 2)
    first = Redraws(2, 5)
    first.add(draws[0], draws[0, :1] / 2)
    assert first.decisive == pytest.approx([np.square(numpy[0, 0]).sum() / 2, 0]), "of the first methods alone"


def test_batch_product_is_the_mean_over_every_batch_of_distinct_problems():
    rng = np.random.default_rng(0)
    means, others = rng.normal(size=(2, 5, 3))
    gram = (means @ others.T + others @ means.T) / 2
    for batch in (1, 2, 3):
        batches = list(itertools.permutations(range(5), batch))
        wanted = np.mean([means[list(chosen)].mean(0) @ others[list(chosen)].mean(0) for chosen in batches])
        assert batch_product(gram, np.zeros(5), 2, batch, np.ones((1, 5)))[0] == pytest.approx(wanted)


def test_batch_product_has_no_bias_from_the_noise_of_few_redraws():
    """Two problems whose gradients take two values each: the estimate, averaged over every pair of redraws of both, is exact."""
    values = np.array([[3.0, 1.0], [-1.0, 2.0]])
    truth = values.mean(1)
    estimates = []
    for first in itertools.product(values[0], repeat=2):
        for second in itertools.product(values[1], repeat=2):
            draws = np.array([first, second])
            mean = draws.mean(1)
            estimates.append(batch_product(np.outer(mean, mean), draws.var(1, ddof=1), 2, 2, np.ones((1, 2)))[0])
    wanted = (np.square(truth).mean() + truth[0] * truth[1]) / 2
    assert np.mean(estimates) == pytest.approx(wanted)


def test_copies_of_a_problem_in_a_resample_are_no_pair():
    """A bootstrap that paired a problem with its own copy would add its noise to the signal."""
    rng = np.random.default_rng(1)
    means = rng.normal(size=(4, 3))
    gram, weights = means @ means.T, np.array([[2.0, 0.0, 1.0, 3.0]])
    copies = [0, 0, 2, 3, 3, 3]
    pairs = [gram[p, q] for i, p in enumerate(copies) for j, q in enumerate(copies) if p != q]
    wanted = np.mean([gram[p, p] for p in copies]) / 4 + 3 / 4 * np.mean(pairs)
    assert batch_product(gram, np.zeros(4), 2, 4, weights)[0] == pytest.approx(wanted)


def test_more_problems_in_an_update_lift_its_signal_to_noise_ratio():
    """With one true gradient for all problems, an update of B of them has B times the ratio of one."""
    gram, within = np.full((6, 6), 4.0), np.full(6, 2.0)
    ratio = [update_snr(gram, within, 10**9, batch, np.ones((1, 6)))[0] for batch in (1, 2, 6)]
    assert ratio == pytest.approx([2.0, 4.0, 12.0])
