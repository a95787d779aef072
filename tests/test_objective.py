"""The surrogate -1/B sum w (A ratio - beta k3), its gradient identities on policy, and the L2 term."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import QUICK, k3, rows_of, surrogate

from replication.algorithms import GRPO, SGRPO, TSPMO, TokenCredit
from replication.objective import l2_penalty, surrogate_loss

VOCABULARY = 5


def credit_of(rows: list[tuple[float, float]]) -> TokenCredit:
    """A credit of one completion with these (advantage, weight)."""
    places = torch.arange(len(rows))
    advantages, weights = (torch.tensor([row[column] for row in rows]) for column in (0, 1))
    return TokenCredit(torch.zeros_like(places), places, advantages, weights)


def nothing() -> TokenCredit:
    return credit_of([])


_number = st.floats(-3, 3, allow_nan=False).map(lambda value: round(value, 3))
_group = st.lists(st.tuples(_number, st.sampled_from([0.25, 0.1, 1.0])), max_size=5)


@st.composite
def batches(draw: st.DrawFn):
    """Groups of (advantage, weight), some empty, with log-probs and reference log-probs for their rows."""
    groups = draw(st.lists(_group, min_size=1, max_size=4))
    rows = sum(len(group) for group in groups)
    numbers = st.lists(st.floats(-4, -0.01), min_size=rows, max_size=rows)
    log_probs, references = draw(numbers), draw(numbers)
    return [credit_of(group) for group in groups], *(torch.tensor(x, dtype=torch.float64) for x in (log_probs, references))


def test_hand_worked_batch_of_two_groups_one_of_them_tied():
    """Rows (A, w) = (1, 1/2), (-2, 1/4); the other group ties. B = 2: loss = -1/2 (1/2 - 1/2) = 0, gradient
    -1/2 · w A = -1/4 and +1/4. With rows (1, 1/2) alone the loss is -1/4 in a batch of two and -1/2 in a batch of one."""
    log_probs = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    loss, _ = surrogate_loss(log_probs, [credit_of([(1.0, 0.5), (-2.0, 0.25)]), nothing()])
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, log_probs)[0].tolist() == [-0.25, 0.25]
    single = torch.tensor([-1.0])
    assert surrogate_loss(single, [nothing(), credit_of([(1.0, 0.5)])])[0].item() == -0.25
    assert surrogate_loss(single, [credit_of([(1.0, 0.5)])])[0].item() == -0.5


def test_hand_worked_kl():
    """pi = 1/2, ref = 1/4: r = log(1/4) - log(1/2) = -log 2, k3 = 1/2 + log 2 - 1 = 0.1931472.

    A = 1, w = 1/2, beta = 0.1, B = 1: loss = -1/2 (1 - 0.01931472) = -0.49034264.
    d k3 / d log pi = 1 - ref/pi = 1/2, so d loss = -1/2 (1 - 0.1 · 1/2) = -0.475.
    """
    log_probs = torch.tensor([math.log(0.5)], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([math.log(0.25)], dtype=torch.float64)
    loss, _ = surrogate_loss(log_probs, [credit_of([(1.0, 0.5)])], reference_log_probs=reference, beta=0.1)
    assert loss.item() == pytest.approx(-0.5 * (1 - 0.1 * (math.log(2) - 0.5)), abs=1e-12)
    assert torch.autograd.grad(loss, log_probs)[0].item() == pytest.approx(-0.475, abs=1e-12)


@QUICK
@given(batch=batches(), beta=st.sampled_from([0.0, 0.04, 1.0]))
def test_value_and_gradient_against_the_oracle(batch, beta):
    """In float64 to 1e-12: d loss / d log pi = -w/B (A - beta (1 - exp r)) at every row."""
    credits, log_probs, references = batch
    log_probs.requires_grad_()
    loss, _ = surrogate_loss(log_probs, credits, reference_log_probs=references, beta=beta)
    rows = [[(i, t, a, w) for i, t, a, w in rows_of(credit)] for credit in credits]
    expected = surrogate(rows, log_probs.tolist(), references.tolist(), beta)
    assert loss.item() == pytest.approx(expected, abs=1e-12, rel=1e-12)
    assert loss.dtype == torch.float64 and loss.dim() == 0
    flat = [row for group in rows for row in group]
    if flat:
        gradient = torch.autograd.grad(loss, log_probs)[0].tolist()
        for (_, _, a, w), here, ref, got in zip(flat, log_probs.tolist(), references.tolist(), gradient, strict=True):
            assert got == pytest.approx(-w / len(credits) * (a - beta * (1 - math.exp(ref - here))), abs=1e-12)


@pytest.mark.parametrize(
    "method",
    [GRPO(), GRPO(denominator="group_tokens"), SGRPO(1, 0.5, None), TSPMO(), TSPMO(denominator="transitions")],
    ids=["grpo", "grpo_group_tokens", "s_grpo", "t_spmo", "t_spmo_transitions"],
)
def test_on_policy_the_gradient_is_that_of_reinforce(method):
    """Factor 1, not 2: for a table of logits, d log softmax_v / d logit_u = [u = v] - p_u, summed by hand over the rows.

    The policy is one row of logits for each position, so that positions and tokens cannot be taken for one another.
    """
    groups = [[[0, 1, 4], [0, 2, 4], [3, 4], [0, 1, 1, 4]], [[1, 4], [1, 4]], [[2, 2, 4], [2, 4], [4]]]
    rewards = [torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0, 0.0])]
    generator = torch.Generator().manual_seed(0)
    credits = [method.assign(group, reward, generator) for group, reward in zip(groups, rewards, strict=True)]
    assert len(credits[1]) == 0
    logits = torch.randn(4, VOCABULARY, generator=generator, dtype=torch.float64, requires_grad=True)

    picked = [logits[t].log_softmax(0)[groups[g][i][t]] for g, credit in enumerate(credits) for i, t in in_order(credit)]
    loss, _ = surrogate_loss(torch.stack(picked), credits)

    expected = torch.zeros(4, VOCABULARY, dtype=torch.float64)
    p = logits.detach().softmax(1)
    for group, credit in zip(groups, credits, strict=True):
        for i, t, a, w in rows_of(credit):
            for u in range(VOCABULARY):
                expected[t, u] -= w * a * (float(u == group[i][t]) - p[t, u]) / len(groups)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected, rtol=0, atol=1e-12)


def in_order(credit: TokenCredit) -> list[tuple[int, int]]:
    """The places of a credit in its own order, which is the order of the log-probs."""
    return list(zip(credit.completion.tolist(), credit.position.tolist(), strict=True))


def test_kl_gradient_on_policy_is_that_of_reference_to_policy():
    """k3 as a loss, averaged over v drawn from pi, has the gradient of KL(ref || pi), and neither that of KL(pi || ref) nor zero.

    The expectation is exact: one row for each token v with weight pi(v) held fixed, as sampling would hold it.
    """
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64).log_softmax(0)
    log_p = logits.log_softmax(0)
    rows = [(0.0, weight) for weight in log_p.detach().exp().tolist()]
    loss, _ = surrogate_loss(log_p, [credit_of(rows)], reference_log_probs=reference, beta=1.0)
    (gradient,) = torch.autograd.grad(loss, logits)

    forward = (reference.exp() * (reference - logits.log_softmax(0))).sum()
    backward = (logits.log_softmax(0).exp() * (logits.log_softmax(0) - reference)).sum()
    # The weights of a credit are float32, so 1e-7 is what can be asked.
    torch.testing.assert_close(gradient, torch.autograd.grad(forward, logits)[0], rtol=0, atol=1e-6)
    assert (gradient - torch.autograd.grad(backward, logits)[0]).abs().max() > 0.05
    # Its value, in contrast, is that of KL(pi || ref).
    assert loss.item() == pytest.approx(backward.item(), abs=1e-6)


def test_kl_is_zero_where_the_policies_agree_and_never_negative():
    log_probs = torch.tensor([-0.5, -3.0], dtype=torch.float64, requires_grad=True)
    credit = credit_of([(0.0, 0.5), (0.0, 0.5)])
    loss, _ = surrogate_loss(log_probs, [credit], reference_log_probs=log_probs.detach(), beta=2.0)
    assert loss.item() == 0.0 and torch.autograd.grad(loss, log_probs)[0].abs().max().item() == 0.0
    assert all(k3(-1.0, reference) >= 0 for reference in (-3.0, -1.0, -0.1))
    for shift in (-1.0, 1.0):
        assert surrogate_loss(log_probs, [credit], reference_log_probs=log_probs.detach() + shift, beta=2.0)[0].item() > 0


def test_a_tied_group_contributes_no_kl():
    """It has no rows, so no log-probs and no KL; it only counts in B."""
    log_probs, reference = torch.tensor([-1.0]), torch.tensor([-2.0])
    one, _ = surrogate_loss(log_probs, [credit_of([(0.0, 1.0)])], reference_log_probs=reference, beta=1.0)
    two, _ = surrogate_loss(log_probs, [credit_of([(0.0, 1.0)]), nothing()], reference_log_probs=reference, beta=1.0)
    assert two.item() == pytest.approx(one.item() / 2) and one.item() > 0


def test_the_value_is_minus_the_weighted_advantages_whatever_the_log_probs():
    """The ratio is exactly 1, also where exp(log pi) would be 0 in float32."""
    credit = credit_of([(2.0, 0.25), (-1.0, 0.5)])
    for log_probs in (torch.tensor([-1e-3, -5.0]), torch.tensor([-500.0, -90.0])):
        assert surrogate_loss(log_probs, [credit])[0].item() == 0.0
    assert surrogate_loss(torch.tensor([-700.0]), [credit_of([(3.0, 1.0)])])[0].item() == -3.0


def test_a_batch_without_credit_is_exactly_zero_and_can_be_differentiated():
    log_probs = torch.zeros(0, requires_grad=True)
    loss, _ = surrogate_loss(log_probs, [nothing(), nothing()])
    loss.backward()
    assert loss.item() == 0.0 and loss.dim() == 0 and log_probs.grad.shape == (0,)


def test_parts_of_a_batch_add_up_to_the_batch():
    """Gradient accumulation: each part divides by the groups of the whole batch, so the split cannot show."""
    credits = [credit_of([(1.0, 0.5), (2.0, 0.25)]), nothing(), credit_of([(-1.0, 0.125)])]
    log_probs = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    references = torch.tensor([-1.5, -1.0, -3.5], dtype=torch.float64)
    whole, _ = surrogate_loss(log_probs, credits, reference_log_probs=references, beta=0.1)
    parts = [
        surrogate_loss(log_probs[a:b], credits[c:d], groups=3, reference_log_probs=references[a:b], beta=0.1)[0]
        for a, b, c, d in ((0, 2, 0, 1), (2, 3, 1, 3))
    ]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), abs=1e-12)


def test_bad_shapes_are_refused():
    credit = credit_of([(1.0, 0.5), (1.0, 0.5)])
    with pytest.raises(ValueError, match="2"):
        surrogate_loss(torch.zeros(3), [credit])
    with pytest.raises(ValueError):
        surrogate_loss(torch.zeros(2, 1), [credit])
    with pytest.raises(ValueError, match="reference"):
        surrogate_loss(torch.zeros(2), [credit], beta=0.1)
    with pytest.raises(ValueError, match="reference"):
        surrogate_loss(torch.zeros(2), [credit], reference_log_probs=torch.zeros(1), beta=0.1)


def test_diagnostics_are_plain_numbers():
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    _, diagnostics = surrogate_loss(log_probs, [credit_of([(1.0, 0.5), (1.0, 0.5)])])
    assert diagnostics and all(type(value) is float and math.isfinite(value) for value in diagnostics.values())


def test_inputs_stay_as_they_are():
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    credit = credit_of([(1.0, 0.5), (1.0, 0.5)])
    before = rows_of(credit)
    surrogate_loss(log_probs, [credit], reference_log_probs=torch.tensor([-1.5, -1.5]), beta=0.1)[0].backward()
    assert rows_of(credit) == before and log_probs.tolist() == [-1.0, -2.0]


# -------------------------------------------------------------------------------------------------------------- L2


def test_hand_worked_l2():
    """1 + 4 + 9 + 16 = 30, gradient 2 theta; against a start of ones 0 + 1 + 4 + 9 = 14, gradient 2 (theta - 1)."""
    a = torch.tensor([[1.0, 2.0]], requires_grad=True)
    b = torch.tensor([3.0, 4.0], requires_grad=True)
    penalty = l2_penalty([a, b])
    assert penalty.item() == 30.0
    assert [g.tolist() for g in torch.autograd.grad(penalty, [a, b])] == [[[2.0, 4.0]], [6.0, 8.0]]
    difference = l2_penalty([a, b], [torch.ones(1, 2), torch.ones(2)])
    assert difference.item() == 14.0
    assert [g.tolist() for g in torch.autograd.grad(difference, [a, b])] == [[[0.0, 2.0]], [4.0, 6.0]]


def test_l2_takes_generators_as_models_give_them():
    model = torch.nn.Linear(3, 2)
    expected = sum(float(value) ** 2 for parameter in model.parameters() for value in parameter.detach().flatten())
    assert l2_penalty(model.parameters()).item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError):
        l2_penalty([torch.ones(2), torch.ones(2)], [torch.ones(2)])
