"""Prompts begin as the model's own tokenizer begins them, and every end that a model declares is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import tiny_config, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from replication.models import Policy, load_policy
from replication.tasks import get_task

BOS, EOS, SOP = 1, 2, 3


def policy_with(post: str | None) -> Policy:
    """A policy whose byte-level tokenizer wraps a text as ``post`` says."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<bos>", "<eos>", "<sop>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>", "<sop>"])
    if post is not None:
        special = [("<bos>", BOS), ("<eos>", EOS), ("<sop>", SOP)]
        tokenizer.post_processor = processors.TemplateProcessing(single=post, special_tokens=special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    return Policy(None, fast, {}, None, (EOS,), 0)


@pytest.mark.parametrize(
    ("post", "prefix"),
    [
        (None, []),
        ("$A", []),
        ("<bos> $A", [BOS]),  # Gemma, Llama, Mistral
        ("<bos> $A <eos>", [BOS]),
        ("$A <eos>", []),
        ("<bos> <sop> $A", [BOS, SOP]),  # GLM begins with two
    ],
)
@pytest.mark.parametrize("text", ["Question: What is 2*3?\nAnswer:", "1", "11", ""])
def test_a_prompt_has_the_ids_that_its_tokenizer_gives_a_raw_text(post, prefix, text):
    """The BOS was dropped for all, and Gemma 3 then answered without end on 16 of 16 items."""
    policy = policy_with(post)
    ids = policy.encode(text)
    own = policy.tokenizer(text)["input_ids"]
    assert ids == own[: len(own) - (post or "").endswith("<eos>")]
    assert ids[: len(prefix)] == prefix and ids.count(EOS) == 0
    assert policy.decode(ids) == text


@pytest.mark.parametrize("post", ["<bos> $A", "<bos> $A <eos>", "<bos> <sop> $A"])
def test_a_rendered_chat_that_begins_with_bos_gets_no_second_one(post):
    policy = policy_with(post)
    begin = "<bos><sop>" if "<sop>" in post else "<bos>"
    ids = policy.encode(f"{begin}user: 2*3?")
    assert ids == policy.encode("user: 2*3?") and ids.count(BOS) == 1


def test_the_nano_base_keeps_its_ids():
    """Committed results rest on prompts without special tokens: its tokenizer has no BOS, so the two are one."""
    tokenizer = load_policy(tiny_config("nano", "base")).tokenizer
    policy = Policy(None, tokenizer, {}, None, (0,), 1)
    for name in ("word_problems", "multiplication"):
        for problem in get_task(name).test[:300]:
            plain, whole = (tokenizer(problem.prompt, add_special_tokens=special)["input_ids"] for special in (False, True))
            assert policy.encode(problem.prompt) == plain == whole


@pytest.fixture
def base(random_base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(random_base, tmp_path / "base")


def test_an_end_counts_wherever_it_is_declared(base):
    """Phi-3 names one end in its config and three in its generation config: read from one alone, no completion ever ended."""
    tokenizer_eos = tiny_tokenizer().eos_token_id
    for name, ids in (("config.json", 7), ("generation_config.json", [9, 11])):
        content = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**content, "eos_token_id": ids}))
    assert load_policy(tiny_config(base, "base")).eos_token_ids == tuple(sorted({7, 9, 11, tokenizer_eos}))
    (base / "generation_config.json").unlink()
    assert load_policy(tiny_config(base, "base")).eos_token_ids == tuple(sorted({7, tokenizer_eos}))


def test_the_nano_base_keeps_its_one_end():
    assert load_policy(tiny_config("nano", "base")).eos_token_ids == (0,)
