"""Loading a causal LM with its tokenizer, attaching the adapter, and the card of what was trained.

In: a config, a folder, a GGUF file or a name on the Hub. Out: a ``Policy`` (model, tokenizer, trainable parameters).
Start with ``load``; ``checks`` says what a model must be able to do, ``card`` writes the README beside trained weights.
"""

from __future__ import annotations

from replication.models.card import model_card
from replication.models.checks import check_sizes
from replication.models.load import Policy, load_base, load_policy, resolve_device

__all__ = ["Policy", "check_sizes", "load_base", "load_policy", "model_card", "resolve_device"]
