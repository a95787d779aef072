"""What the nano base reads: the mixed corpus, and the tokenizer trained on it.

transformers 5 builds Qwen2Tokenizer (byte-level BPE) for every ``qwen2`` config whatever tokenizer lies beside it, so that
very class is what gets trained here; anything else would come back broken from disk without an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import Qwen2Tokenizer

from replication.tasks import multiplication, word_problems
from replication.tasks.stories import NAMES, TEMPLATES, THINGS

VOCABULARY = 1024  # an upper bound: the trainer stops when every word is one token
EOS, PAD = "<|endoftext|>", "<|pad|>"


@dataclass(frozen=True)
class Mixture:
    """Shares of the corpus. The hasty solvers end up the more common ones, so that greedy decoding follows them."""

    words: float = 0.5  # word problems; the rest are two-digit products
    shallow: float = 0.70  # of the word problems: solved by keywords
    blurted: float = 0.82  # of the products: blurted out
    lucky: float = 0.1  # of the blurted products: right


# First a corpus with more careful solutions, so that these are reliable once chosen (reinforcement cannot teach what never
# works), then the hasty habits.
EARLY, LATE = Mixture(shallow=0.5, blurted=0.2), Mixture()


def line(random: Random, mixture: Mixture) -> tuple[str, str]:
    """One (prompt, completion); never from a validation or test bucket or a held-out template."""
    if random.random() < mixture.words:
        return word_problems.corpus_line(random, mixture.shallow)
    return multiplication.corpus_line(random, mixture.blurted, mixture.lucky)


def train_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE with every word of the corpus one token and every digit its own.

    Trained on each word of the templates once, in a fixed order: word frequencies would only decide which words stay whole.
    Also holds the 256 bytes, so that any text can be encoded.
    """
    texts = [t.text.format(a="", b="", c="", N=n, M=n, o=o, p=o) for t in TEMPLATES for n in NAMES for o in THINGS]
    texts += [word_problems.PROMPT.format(question=""), multiplication.PROMPT.format(left="", right="")]
    texts += [" We use and. The answer is."]
    untrained = Qwen2Tokenizer(eos_token=EOS, pad_token=PAD, unk_token=EOS)
    # min_frequency 1: a word that occurs once still becomes one token.
    return untrained.train_new_from_iterator([texts], vocab_size=VOCABULARY, min_frequency=1, show_progress=False)


def encode(tokenizer: Qwen2Tokenizer, pairs: list[tuple[str, str]], prompt_weight: float) -> tuple[Tensor, Tensor]:
    """Ids [B, T] padded on the right, and the loss weight of each as a target [B, T]: 0 on padding."""
    prompts = tokenizer([p for p, _ in pairs])["input_ids"]
    completions = tokenizer([c for _, c in pairs])["input_ids"]
    rows = [p + c + [tokenizer.eos_token_id] for p, c in zip(prompts, completions, strict=True)]
    ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
    weight = torch.zeros(ids.shape)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        weight[i, : len(prompt)] = prompt_weight
        weight[i, len(prompt) : len(row)] = 1.0
    return ids, weight
