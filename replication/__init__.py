"""Token-efficient reinforcement learning for language models: GRPO, S-GRPO and T-SPMO under LoRA."""

from __future__ import annotations

__version__ = "0.2.0"
