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
from replication.tasks.asides import CUES, FIXED, PATTERNS, WORDS
from replication.tasks.stories import NAMES, TEMPLATES, THINGS

VOCABULARY = 2048  # an upper bound: the trainer stops when every word is one token
EOS, PAD = "<|endoftext|>", "<|pad|>"


@dataclass(frozen=True)
class Mixture:
    """What a part of the corpus is made of."""

    words: float = 0.6  # share of word problems, a third of them for each condition; the rest are two-digit products
    splitting: float = -0.9  # log-odds of splitting a product where its digits say neither


# First a corpus with more splits, so that these are reliable once chosen (reinforcement cannot teach what never works), then the
# hasty habits.
EARLY, LATE = Mixture(splitting=1.5), Mixture()


def line(random: Random, mixture: Mixture) -> tuple[str, str]:
    """One (prompt, completion); never from a validation or test bucket or a held-out template."""
    if random.random() < mixture.words:
        return word_problems.corpus_line(random)
    return multiplication.corpus_line(random, mixture.splitting)


def train_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE with every word of the corpus one token and every digit its own.

    Trained on each word of the templates once, in a fixed order: word frequencies would only decide which words stay whole.
    Also holds the 256 bytes, so that any text can be encoded.
    """
    texts = [PROMPT_FORM, f" We take. The answer is.{FIXED}"]
    for template in TEMPLATES:
        plural, singular = template.scene.container
        blank = {"x": "", "y": "", "z": "", "N": "Sam", "M": "Sam", "o": "", "p": "", "c": plural, "c1": singular}
        texts.append(f" {template.text.format(**blank)}")
    texts += [f" {word} {word}." for word in (*NAMES, *THINGS)]
    texts += [f" {cue}" for cue in CUES.values()]
    texts += [pattern.format(**dict.fromkeys(WORDS, "")) for pattern in PATTERNS]
    texts += [f" {word}." for words in WORDS.values() for word in words]
    untrained = Qwen2Tokenizer(eos_token=EOS, pad_token=PAD, unk_token=EOS)
    # min_frequency 1: a word that occurs once still becomes one token.
    return untrained.train_new_from_iterator([texts], vocab_size=VOCABULARY, min_frequency=1, show_progress=False)


PROMPT_FORM = word_problems.PROMPT.format(question="") + multiplication.PROMPT.format(left="", right="")


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
