"""The shipped base, and that its script builds, refuses and compares as it says."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch

from replication.errors import UserError
from replication.nano import base_report as nano_report
from replication.nano import corpus as nano_corpus
from replication.nano import pretrain as nano_base
from replication.tasks import decisive_positions, get_task

SHIPPED = nano_base.SHIPPED


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


def corpus(count: int) -> list[tuple[str, str]]:
    random = Random("test_nano_base")
    return [nano_corpus.line(random, mixture) for mixture in (nano_corpus.EARLY, nano_corpus.LATE) for _ in range(count)]


def test_the_tokenizer_brings_back_every_text(tokenizer) -> None:
    # A word-level tokenizer saved beside a qwen2 config came back as byte-level BPE, broken and without an error.
    tasks = [get_task("word_problems"), get_task("multiplication"), get_task("multiplication", digits=3)]
    texts = [p.prompt + p.meta["completion"] for t in tasks for p in (*t.train, *t.validation, *t.test, *t.held_out)]
    texts += [prompt + completion for prompt, completion in corpus(5000)]
    encoded = tokenizer(texts)["input_ids"]
    assert tokenizer.batch_decode(encoded) == texts


def test_any_other_text_survives_too(tokenizer) -> None:
    for text in ("Zürich 3½ naïve", "日本 12", "\n\n\t x", "😀"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_words_are_whole_and_digits_single(tokenizer) -> None:
    for prompt, completion in corpus(500):
        text = prompt + completion
        words = text.replace("\n", " ").split()
        tokens = [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"]]
        assert all(len(t.strip()) == 1 for t in tokens if any(c.isdigit() for c in t))
        # No word in parts: as many alphabetic tokens as words with letters.
        assert sum(t.strip().isalpha() for t in tokens) == sum(any(c.isalpha() for c in w) for w in words)


def test_prompt_and_completion_split_where_tokens_do(tokenizer) -> None:
    for prompt, completion in corpus(300):
        assert tokenizer(prompt + completion)["input_ids"] == tokenizer(prompt)["input_ids"] + tokenizer(completion)["input_ids"]


def test_end_and_padding_differ(tokenizer, model) -> None:
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == model.config.pad_token_id
    # Nothing that would change what is sampled.
    ours = {"eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}
    assert set(model.generation_config.to_diff_dict()) <= ours


def test_the_shipped_tokenizer_is_the_trained_one(tokenizer) -> None:
    assert nano_corpus.train_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_references_fit_the_limits(tokenizer) -> None:
    for task in (get_task("word_problems"), get_task("multiplication"), get_task("multiplication", digits=3)):
        problems = [*task.train, *task.validation, *task.test, *task.held_out]
        lengths = [len(ids) + 1 for ids in tokenizer([p.meta["completion"] for p in problems])["input_ids"]]
        assert max(lengths) <= task.max_new_tokens <= 96
    shallow = tokenizer([p.meta["shallow_completion"] for p in get_task("word_problems").train])["input_ids"]
    assert max(map(len, shallow)) < get_task("word_problems").max_new_tokens


@pytest.mark.parametrize("name", ["word_problems", "multiplication"])
def test_decisive_positions_of_the_references(name: str, tokenizer) -> None:
    for problem in get_task(name).train[:300]:
        tokens = tokenizer(problem.meta["completion"])["input_ids"]
        assert decisive_positions(problem, tokens, tokenizer) == problem.meta["decisive_positions"]


def test_the_folder_is_small_and_readable(report: dict) -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 4_000_000
    assert nano_report.weights_sha256(SHIPPED) == report["sha256"]
    assert report["tasks"] == {name: get_task(name).version for name in ("word_problems", "multiplication")}
    assert (SHIPPED / "README.md").read_text(encoding="utf-8") == nano_report.card(report)


def test_the_base_meets_its_criteria(report: dict) -> None:
    measured = report["measured"]
    for split in ("validation", "test"):
        words, products = measured[f"word_problems {split}"], measured[f"multiplication {split}"]
        # The band holds for test; validation (half as many items) may lie one point beside it.
        slack = 0.01 if split == "validation" else 0.0
        assert 0.43 - slack <= words["greedy"] <= 0.49 + slack
        assert products["greedy"] < 0.15
        assert words["reliability"] > 0.9 and products["reliability"] > 0.8
        assert words["truncated"] < 0.01 and products["truncated"] < 0.01
    for name, template in measured["word_problems validation"]["templates"].items():
        assert template["sampled"] > 0.1, name  # at G = 16 nearly every group holds a success


def test_the_reported_numbers_are_those_of_the_shipped_weights(model, tokenizer, report: dict) -> None:
    task = get_task("word_problems")
    found = nano_report.measure(model, tokenizer, task, task.validation[:200], samples=1)
    expected = report["measured"]["word_problems validation"]
    # Three standard errors of 200 items.
    assert abs(found["greedy"] - expected["greedy"]) < 0.11
    assert abs(found["sampled"] - expected["sampled"]) < 0.11


def test_build_writes_compares_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = nano_report.report
    monkeypatch.setattr(nano_report, "report", lambda folder: real(folder, items=4))
    first = nano_base.build(tmp_path / "a", steps=2, threads=1, progress=False)
    second = nano_base.build(tmp_path / "b", steps=2, threads=1, progress=False)
    assert first["sha256"] == second["sha256"]  # the same bits
    assert first["same_weights"] is False and "largest difference" in first["comparison"]
    assert nano_report.compare(tmp_path / "a", tmp_path / "b")["same_weights"] is True
    assert nano_report.compare(tmp_path / "a", tmp_path / "none")["same_weights"] is None
    with pytest.raises(UserError, match="already exists"):
        nano_base.build(tmp_path / "a", steps=2)
    with pytest.raises(UserError, match="at least 1"):
        nano_base.build(tmp_path / "c", steps=0)
    assert not (tmp_path / "c").exists()


def test_bad_usage_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nano_base.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    nano_base.pretrain(1, progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [nano_base.learning_rate(step, 1000) for step in range(1000)]
    assert max(rates) == nano_base.LEARNING_RATE
    assert rates[0] == pytest.approx(nano_base.LEARNING_RATE / nano_base.WARM_UP)
    assert 0 < rates[-1] < 0.01 * nano_base.LEARNING_RATE


def test_loss_weights_cover_completion_and_end_and_no_padding() -> None:
    tokenizer = nano_corpus.train_tokenizer()
    ids, weight = nano_corpus.encode(tokenizer, [("Question: What is 2*3?\nAnswer:", " 6."), ("Answer:", " 5.")], 0.1)
    assert ids.shape == weight.shape
    assert (weight[ids == tokenizer.pad_token_id] == 0).all()
    assert (weight[ids == tokenizer.eos_token_id] == 1).all()
    assert weight.sum(1).tolist() == pytest.approx([4 + 0.1 * 14 - 0.1 * 2, 4 + 0.1 * 2], abs=0.25)
