"""What a run does not record: gradient and credit on decisive tokens, noise, FLOPs, the base under each prompt template.

In: a base model or a finished run, and problems whose deciding tokens are known. Out: tables (credit, worked_example, prompts).
Start with ``credit``; ``token_worth`` says which tokens are decisive, ``gradients`` measures signal and noise.
"""

from __future__ import annotations

from replication.measure.credit import diagnose
from replication.measure.prompts import measure_prompts

__all__ = ["diagnose", "measure_prompts"]
