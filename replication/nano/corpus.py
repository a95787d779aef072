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
PROMPT_WEIGHT = 0.1  # loss weight of a prompt token against 1 of a completion token
CHAT_WEIGHT = 0.2  # of a word that only asides have
EOS, PAD = "<|endoftext|>", "<|pad|>"
PROMPT_FORM = word_problems.PROMPT.format(question="") + multiplication.PROMPT.format(left="", right="")


@dataclass(frozen=True)
class Mixture:
    """What a part of the corpus is made of; what remains beside stories and sums are two-digit products."""

    stories: float  # share of word problems
    sums: float  # share of bare equations in the form of a word problem's answer
    asides: bool  # whether the word problems have asides and the cue for them, a third of them for each condition
    reading: float  # log-odds of solving a word problem with care where its features say neither
    splitting: float  # log-odds of splitting a product where its digits say neither


# First the arithmetic and the careful ways, so that these are reliable once chosen (reinforcement cannot teach what never works):
# short lines, many products split. Then the asides, and at last the hasty habits.
EARLY = Mixture(stories=0.35, sums=0.15, asides=False, reading=-0.03, splitting=1.5)
MIDDLE = Mixture(stories=0.55, sums=0.0, asides=True, reading=-0.03, splitting=1.5)
LATE = Mixture(stories=0.55, sums=0.0, asides=True, reading=0.03, splitting=-0.9)


def line(random: Random, mixture: Mixture) -> tuple[str, str]:
    """One (prompt, completion); never from a validation or test bucket or a held-out template."""
    kind = random.random()
    if kind < mixture.stories:
        return word_problems.corpus_line(random, mixture.reading, asides=mixture.asides)
    if kind < mixture.stories + mixture.sums:
        return word_problems.bare_equation(random)
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


def encode(tokenizer: Qwen2Tokenizer, pairs: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Ids [B, T] padded on the right, and the loss weight of each as a target [B, T]: 0 on padding, 1 where an answer is made.

    Prompts weigh little, and so do the words of a chat, whose noise would drown what there is to learn. Wherever such a word can
    stand, all words that can stand there weigh the same: so their probabilities come out as the corpus has them.
    """
    prompts = tokenizer([p for p, _ in pairs])["input_ids"]
    completions = tokenizer([c for _, c in pairs])["input_ids"]
    rows = [p + c + [tokenizer.eos_token_id] for p, c in zip(prompts, completions, strict=True)]
    ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
    weight = torch.zeros(ids.shape)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        weight[i, : len(prompt)] = PROMPT_WEIGHT
        weight[i, len(prompt) : len(row)] = 1.0
    chat = [i for words in WORDS.values() for word in words for i in tokenizer(f" {word}")["input_ids"]]
    weight[torch.isin(ids, torch.tensor(chat))] = CHAT_WEIGHT
    return ids, weight
