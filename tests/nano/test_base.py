"""The shipped base, and that its script builds, refuses and compares as it says."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch

from replication.errors import UserError
from replication.names import NANO_BASE
from replication.nano import base_report, corpus, pretrain
from replication.tasks import asides, decisive_positions, get_task
from replication.tasks.asides import CONDITIONS

SHIPPED = NANO_BASE
WORDS = {condition: get_task("word_problems", asides=condition) for condition in CONDITIONS}
TASKS = [*WORDS.values(), get_task("multiplication"), get_task("multiplication", digits=3)]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(SHIPPED).eval()


@pytest.fixture(scope="module")
def report() -> dict:
    return json.loads((SHIPPED / "base_report.json").read_text(encoding="utf-8"))


def lines(count: int) -> list[tuple[str, str]]:
    random = Random("test_base")
    return [corpus.line(random, mixture) for mixture, _ in pretrain.MIXTURES for _ in range(count)]


def test_the_tokenizer_brings_back_every_text(tokenizer) -> None:
    # A word-level tokenizer saved beside a qwen2 config came back as byte-level BPE, broken and without an error.
    splits = [split[:400] for task in TASKS for split in (task.train, task.validation, task.test, task.held_out)]
    texts = [problem.prompt + problem.meta["completion"] for split in splits for problem in split]
    texts += [prompt + completion for prompt, completion in lines(500)]
    encoded = tokenizer(texts)["input_ids"]
    assert tokenizer.batch_decode(encoded) == texts


def test_any_other_text_survives_too(tokenizer) -> None:
    for text in ("Zürich 3½ naïve", "日本 12", "\n\n\t x", "😀"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_words_are_whole_and_digits_single(tokenizer) -> None:
    for prompt, completion in lines(500):
        text = prompt + completion
        words = text.replace("\n", " ").split()
        tokens = [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"]]
        assert all(len(t.strip()) == 1 for t in tokens if any(c.isdigit() for c in t))
        # No word in parts: as many alphabetic tokens as words with letters.
        assert sum(t.strip().isalpha() for t in tokens) == sum(any(c.isalpha() for c in w) for w in words)


def test_prompt_and_completion_split_where_tokens_do(tokenizer) -> None:
    for prompt, completion in lines(300):
        assert tokenizer(prompt + completion)["input_ids"] == tokenizer(prompt)["input_ids"] + tokenizer(completion)["input_ids"]


def test_end_and_padding_differ(tokenizer, model) -> None:
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == model.config.pad_token_id
    # Nothing that would change what is sampled.
    ours = {"eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}
    assert set(model.generation_config.to_diff_dict()) <= ours


def test_the_shipped_tokenizer_is_the_trained_one(tokenizer) -> None:
    assert corpus.train_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_references_fit_the_limits(tokenizer) -> None:
    for task in TASKS:
        problems = [*task.train, *task.validation, *task.test, *task.held_out]
        texts = [p.meta[key] for p in problems for key in ("completion", "hasty_completion") if key in p.meta]
        longest = sorted(texts, key=len)[-500:]  # in characters; the longest in tokens is among them by far
        assert max(len(ids) + 1 for ids in tokenizer(longest)["input_ids"]) <= task.max_new_tokens <= 128
    assert get_task("word_problems", longer_numbers=True).max_new_tokens <= 128


@pytest.mark.parametrize("task", TASKS[:4])
def test_decisive_positions_of_the_references(task, tokenizer) -> None:
    """Counted by hand. A word problem: behind ' We', ' take', ' ', both operands and the operator. A product: the last digit."""
    for problem in task.train[:200]:
        tokens = tokenizer(problem.meta["completion"])["input_ids"]
        if task.name == "word_problems":
            left, right = problem.meta["operands"]
            start = 3 + (asides.LENGTH if problem.meta["asides"] == "before" else 0)
            expected = list(range(start, start + len(str(left)) + 1 + len(str(right))))
        else:
            expected = [len(str(problem.meta["left"])) + len(str(problem.meta["right"])) + 1]
        assert decisive_positions(problem, tokens, tokenizer) == expected


def test_the_folder_is_small_and_readable(report: dict) -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 6_000_000
    assert base_report.weights_sha256(SHIPPED) == report["sha256"]
    assert report["tasks"] == base_report.task_versions()
    assert (SHIPPED / "README.md").read_text(encoding="utf-8") == base_report.card(report)


def test_the_base_meets_its_criteria(report: dict) -> None:
    missed = [item for item in base_report.criteria(report["measured"]) if not item.met]
    assert not missed


def test_a_criterion_that_is_missed_is_seen(report: dict) -> None:
    measured = json.loads(json.dumps(report["measured"]))
    measured["word_problems before validation"]["greedy"] += 0.2
    missed = {item.name for item in base_report.criteria(measured) if not item.met}
    assert {"before: greedy accuracy", "before: sampled minus greedy", "greatest difference between conditions"} == missed


@pytest.mark.parametrize("name", ["word_problems after", "multiplication"])
def test_the_reported_numbers_are_those_of_the_shipped_weights(name: str, model, tokenizer, report: dict) -> None:
    task = {f"word_problems {condition}": task for condition, task in WORDS.items()}.get(name, TASKS[3])
    found = base_report.measure(model, tokenizer, task, task.validation[:100])
    expected = report["measured"][f"{name} validation"]
    for key in ("greedy", "sampled", "careful", "forced_greedy", "forced_sampled"):
        error = (expected[key] * (1 - expected[key]) / 100) ** 0.5
        assert abs(found[key] - expected[key]) < 4 * error + 0.01, key
    assert found["entropy"] == pytest.approx(expected["entropy"], abs=0.05)
    assert found["decisive"] == pytest.approx(expected["decisive"], abs=0.02)


def test_build_writes_compares_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is measured here are not these models: a random one writes up to the limit, which takes long.
    measured = json.loads((SHIPPED / "base_report.json").read_text(encoding="utf-8"))["measured"]
    monkeypatch.setattr(base_report, "report", lambda folder: measured)
    first = pretrain.build(tmp_path / "a", steps=2, threads=1)
    second = pretrain.build(tmp_path / "b", steps=2, threads=1)
    assert first["sha256"] == second["sha256"]  # the same bits
    assert first["same_weights"] is False and "largest difference" in first["comparison"]
    assert base_report.compare(tmp_path / "a", tmp_path / "b")["same_weights"] is True
    assert base_report.compare(tmp_path / "a", tmp_path / "none")["same_weights"] is None
    with pytest.raises(UserError, match="already exists"):
        pretrain.build(tmp_path / "a", steps=2)
    with pytest.raises(UserError, match="at least 1"):
        pretrain.build(tmp_path / "c", steps=0)
    assert not (tmp_path / "c").exists()


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    pretrain.pretrain(1)
    assert torch.equal(before, torch.get_rng_state())


def test_mixtures_and_learning_rate_keep_their_proportions() -> None:
    for steps in (330, pretrain.STEPS):
        found = [pretrain.mixture_of(step, steps) for step in range(steps)]
        for mixture, share in pretrain.MIXTURES:
            assert found.count(mixture) == share * steps // pretrain.STEPS
        shares = [pretrain.learning_rate(step, steps) for step in range(steps)]
        assert shares[0] == pytest.approx(1 / pretrain.WARM_UP) and 0 < shares[-1] < 0.01
        assert {share for share, mixture in zip(shares, found, strict=True) if mixture == corpus.EARLY} - set(shares[:50]) <= {1.0}
        assert shares[50:] == sorted(shares[50:], reverse=True)


def test_loss_weights_cover_completion_and_end_and_no_padding() -> None:
    tokenizer = corpus.train_tokenizer()
    ids, weight = corpus.encode(tokenizer, [("Question: What is 2*3?\nAnswer:", " 6."), ("Answer:", " 5.")])
    assert ids.shape == weight.shape
    assert (weight[ids == tokenizer.pad_token_id] == 0).all()
    assert (weight[ids == tokenizer.eos_token_id] == 1).all()
    # Question : ' What' ' is' ' ' 2 * 3 ? newline Answer : against ' ' 6 . EOS
    assert weight.sum(1).tolist() == pytest.approx([4 + 12 * corpus.PROMPT_WEIGHT, 4 + 2 * corpus.PROMPT_WEIGHT])


def test_words_of_a_chat_weigh_little_and_alike() -> None:
    """Words that can stand in one place must weigh the same, or the base would not sample them as often as the corpus does."""
    tokenizer = corpus.train_tokenizer()
    ids, weight = corpus.encode(tokenizer, [("Answer:", " The old cat sits near the dark wall now. The answer is 5.")])
    by_word = dict(zip(tokenizer.batch_decode(ids[0][:, None]), weight[0].tolist(), strict=True))
    for word in ("old", "cat", "sits", "near", "dark", "wall", "now"):
        assert by_word[f" {word}"] == pytest.approx(corpus.CHAT_WEIGHT)
    assert all(by_word[word] == 1 for word in (" The", " the", ".", " answer", " is", "5"))
    singles = {tokenizer(f" {word}")["input_ids"][0] for words in asides.WORDS.values() for word in words}
    fixed = {i for pattern in asides.PATTERNS for i in tokenizer(asides._SLOT.sub("", pattern))["input_ids"]}
    assert not singles & fixed  # no place where a chat word and a word of the pattern compete
