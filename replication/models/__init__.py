"""A causal LM with its tokenizer and adapter, and the card of a trained adapter.

In: a config. Out: a ``Policy``: the model, its trainable parameters, and what encodes and ends its text.
Start with ``load``; ``card`` writes the page that is saved beside an adapter.
"""

from __future__ import annotations

from replication.models.load import Policy, load_policy

__all__ = ["Policy", "load_policy"]
