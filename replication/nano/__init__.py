"""Making the nano base: the corpus it reads, its pre-training, and the report of what it can do.

In: nothing but the grammar of the generated tasks. Out: a folder with weights, tokenizer, card and ``base_report.json``.
Start with ``pretrain``; ``build(out)`` trains a base into a new folder and compares it with the shipped one.
"""

from __future__ import annotations

from replication.nano.corpus import train_tokenizer
from replication.nano.pretrain import build

__all__ = ["build", "train_tokenizer"]
