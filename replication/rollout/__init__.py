"""Sampling: groups of completions, drawn from exactly the distribution that is scored.

In: a causal LM and prompts. Out: completions with their log-probs. ``sampling`` draws; ``rows`` has the model's passes.
"""

from replication.rollout.sampling import Completion, generate

__all__ = ["Completion", "generate"]
