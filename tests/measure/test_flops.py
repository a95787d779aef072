"""FLOPs of a token against those counted by hand from the shapes of a small Qwen2."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny

from replication.measure.flops import flops_per_token


def test_a_token_takes_two_flops_for_each_weight_and_those_of_attention():
    model = tiny.tiny_qwen2()
    length = 12
    matrices = sum(weight.numel() for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name)
    if model.config.tie_word_embeddings:
        matrices += model.get_input_embeddings().weight.numel()
    config = model.config
    heads = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    by_hand = 2 * matrices + config.num_hidden_layers * 2 * 2 * heads * length
    forward, both = flops_per_token(SimpleNamespace(model=model), range(1, length + 1))
    # Rotary positions are a product of matrices too, a small one.
    assert forward == pytest.approx(by_hand, rel=0.02)
    assert 2.5 * forward < both <= 3.0 * forward, "all weights are trainable here"
    assert all(parameter.grad is None for parameter in model.parameters())
    adapted = tiny.with_lora(tiny.tiny_qwen2())
    assert flops_per_token(SimpleNamespace(model=adapted), range(1, length + 1))[1] < both
