"""The ledger against torch's own counters: what is predicted is what is computed and kept."""

from __future__ import annotations

import pytest
import torch
from tiny import BUILDERS, LAYERS, tiny_qwen2, with_lora
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from replication import scoring
from replication.algorithms import GRPO, SGRPO, TSPMO, TokenCredit
from replication.ledger import ScoringCost, rollout_cost, scoring_cost
from replication.rollout import generate
from replication.scoring import token_log_probs

PROMPTS = [[5, 6, 7, 8, 9], [10, 11]]
COMPLETIONS = [
    [[4, 5, 6, 7, 8, 2], [4, 5, 9, 9, 2], [4, 8, 8, 2], [12, 2]],
    [[6, 6, 6, 6, 2], [6, 6, 7, 2], [13, 14, 15, 16, 17, 18, 2], [13, 2]],
]
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0])
METHODS = {"grpo": GRPO(), "s_grpo": SGRPO(1, 0.3, 3), "t_spmo": TSPMO()}


def credits_of(method) -> list[TokenCredit]:
    generator = torch.Generator().manual_seed(0)
    return [method.assign(group, REWARDS, generator) for group in COMPLETIONS]


def counted(model, credits, strategy: str) -> int:
    """FLOPs of one pass by torch's counter, with attention as plain matrix products, which it knows on every device."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        token_log_probs(model, PROMPTS, COMPLETIONS, credits, strategy=strategy).sum().backward()
    return counter.get_total_flops()


def predicted_for_plain_products(model, credits, strategy: str) -> int:
    """The prediction less what the fused kernel alone computes: it does not keep the scores, and it always differentiates keys.

    The keys of the first layer need no gradient where they have a projection, and no adapter, of their own.
    """
    if strategy == "packed":
        batches = scoring.batch_rows(scoring.pack_groups(PROMPTS, COMPLETIONS, credits))
        shapes = [(len(batch), len(batch[0])) for batch in batches]
    else:
        shapes = [(len(g), len(p) + max(map(len, g))) for p, g in zip(PROMPTS, COMPLETIONS, strict=True)]
    product = sum(2 * rows * length**2 * 32 for rows, length in shapes)
    own_keys = model.config.model_type != "gpt2"
    return scoring_cost(PROMPTS, COMPLETIONS, credits, strategy, model).flops - product * (LAYERS + own_keys)


@pytest.mark.parametrize("strategy", ["packed", "dense"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", BUILDERS)
def test_flops_are_those_that_torch_counts(architecture, method, strategy):
    """With adapters; a rotary embedding's own little product is in no ledger."""
    model = with_lora(BUILDERS[architecture]())
    credits = credits_of(METHODS[method])
    assert predicted_for_plain_products(model, credits, strategy) == pytest.approx(counted(model, credits, strategy), rel=0.002)


def test_frozen_layers_below_the_first_adapter_have_no_backward_pass():
    """The last layer alone is trained: a third of the blocks' backward pass, in the prediction and in fact."""
    model, whole = with_lora(tiny_qwen2(), layers=[LAYERS - 1]), with_lora(tiny_qwen2())
    credits = credits_of(GRPO())
    predicted = scoring_cost(PROMPTS, COMPLETIONS, credits, "packed", model).flops
    assert predicted < 0.85 * scoring_cost(PROMPTS, COMPLETIONS, credits, "packed", whole).flops
    assert predicted == pytest.approx(counted(model, credits, "packed"), rel=0.03)


def test_without_a_model_tokens_alone_are_counted():
    cost = scoring_cost(PROMPTS, COMPLETIONS, credits_of(GRPO()), "packed")
    # Prompts, then the inner nodes of the tries: 4, 45, 456, 4567, 45678, 459, 4599, 48, 488, 12; 6, 66, 666, 6666, 667, 13, ...
    assert cost == ScoringCost(forwarded=7 + 10 + 11, scored=10 + 11 + 2, in_loss=35)
    assert scoring_cost(PROMPTS, COMPLETIONS, credits_of(GRPO()), "dense") == ScoringCost(28 + 35, 28 + 35, 35)
    nothing = [TokenCredit.empty()] * 2
    for model in (None, with_lora(tiny_qwen2())):
        assert scoring_cost(PROMPTS, COMPLETIONS, nothing, "packed", model).forwarded == 0


@pytest.mark.parametrize("architecture", BUILDERS)
def test_bytes_are_those_that_autograd_keeps(architecture):
    """Everything that is saved for the backward pass, each storage once, parameters not counted; within a twentieth."""
    model = with_lora(BUILDERS[architecture]())
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []  # a storage that is freed could hand its address on

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    credits = credits_of(GRPO())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_log_probs(model, PROMPTS, COMPLETIONS, credits)
    cost = scoring_cost(PROMPTS, COMPLETIONS, credits, "packed", model)
    logits = 4 * cost.scored * model.config.vocab_size
    # The prediction holds five tensors of the size of the logits, at the peak of the backward pass; two are kept until then.
    assert cost.bytes - 5 * logits == pytest.approx(sum(kept.values()) - logits, rel=0.15)


def test_a_rollout_puts_each_distinct_prefix_through_the_model_once():
    model = tiny_qwen2()
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        groups = generate(
            model,
            PROMPTS,
            group_size=6,
            max_new_tokens=8,
            temperature=1.0,
            eos_token_ids=[2, 3],
            pad_token_id=0,
            generators=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        )
    cost = rollout_cost(model, PROMPTS, [[c.tokens for c in group] for group in groups], rows=256)
    assert cost.forwarded == sum(seen)
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.005)
    assert cost.bytes > 0


def test_a_model_that_is_scored_densely_is_counted_so():
    """An architecture that packing was not checked for falls back to the dense path; its packed cost was recorded all the same."""
    model = with_lora(tiny_qwen2())
    credits = credits_of(METHODS["grpo"])
    dense = scoring_cost(PROMPTS, COMPLETIONS, credits, "dense", model)
    assert scoring_cost(PROMPTS, COMPLETIONS, credits, "packed", model) != dense
    scoring.unwrapped(model).config.model_type = "never_checked"
    assert scoring_cost(PROMPTS, COMPLETIONS, credits, "packed", model) == dense
