"""What the report says of prompts, of the two parts of a gain, and of every setting's source."""

from __future__ import annotations

from html.parser import HTMLParser

import pandas as pd
import pytest
import synthetic_tables as synthetic

from replication.config import ExperimentConfig
from replication.report import build
from replication.report.appendix import gain_table, prompt_table, provenance
from replication.tables import KINDS, frame, write_tables


def items(answers: dict[str, list[tuple[int, int, int]]]) -> dict[str, pd.DataFrame]:
    """Tables of one seed with (correct, truncated, parsed) of each item by method."""
    tables = synthetic.headline(seeds=1)
    runs = tables["runs"]
    runs = runs[(runs["profile"] == "nano") & (runs["task"] == "word_problems") & runs["method"].isin(answers)]
    run_ids = dict(zip(runs["method"], runs["run_id"], strict=True))
    rows = [
        {"run_id": run_ids[method], "split": "test", "item_id": f"i{number}", "correct": c, "truncated": t, "parsed": p}
        | {"template": None, "reward": float(c)}
        for method, own in answers.items()
        for number, (c, t, p) in enumerate(own)
    ]
    found = pd.DataFrame(rows)
    runs = runs.assign(accuracy=runs["run_id"].map(found.groupby("run_id")["correct"].mean()), steps=75, keep_probability=0.3)
    return {**tables, "runs": runs, "items": found}


RIGHT, WRONG, NOTHING, CUT = (1, 0, 1), (0, 0, 1), (0, 0, 0), (0, 1, 1)


@pytest.mark.parametrize(
    ("before", "after", "form", "correctness"),
    [
        ([RIGHT, WRONG, NOTHING, CUT], [RIGHT, RIGHT, WRONG, WRONG], 25.0, 0.0),  # as often right, always parsable
        ([RIGHT, WRONG, WRONG, WRONG], [RIGHT, RIGHT, RIGHT, WRONG], 0.0, 50.0),
        ([NOTHING, CUT, CUT, CUT], [RIGHT, RIGHT, WRONG, NOTHING], 50.0, 0.0),  # nothing parsable before: all of it is form
        ([RIGHT, WRONG, NOTHING, NOTHING], [RIGHT, RIGHT, RIGHT, RIGHT], 37.5, 37.5),
    ],
)
def test_a_gain_is_split_by_hand(before, after, form, correctness):
    (row,) = gain_table(items({"base": before, "grpo": after}), "nano").to_dict("records")
    assert row["method"] == "grpo"
    assert row["gain_of_form"] == pytest.approx(form) and row["gain_of_correctness"] == pytest.approx(correctness)
    assert row["gain"] == pytest.approx(form + correctness)


def test_without_parsed_in_the_items_nothing_is_split():
    assert gain_table(synthetic.headline(seeds=1), "nano").empty
    assert gain_table({}, "nano").empty and prompt_table({}, "nano").empty


class Text(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def __str__(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_shows_prompts_gains_and_settings(tmp_path):
    tables = items({"base": [RIGHT, WRONG, NOTHING, CUT], "grpo": [RIGHT, RIGHT, WRONG, WRONG]})
    write_tables(tables, tmp_path, {"commit": "0" * 40})
    assert "Prompt templates" not in str(Text(build(tmp_path, "nano").read_text()))

    common = {"profile": "nano", "model": "nano", "task": "word_problems"}
    shares = {f"{name}{end}": 0.25 for name in ("accuracy", "parsable_share", "truncated_share") for end in ("", "_low", "_high")}
    rows = [
        common | shares | {"template": "plain", "chosen": True, "run_id": "x", "status": "done", "items": 8},
        common | {"template": "chat", "chosen": False, "status": "not run", "reason": "no <chat> template"},
    ]
    write_tables({"prompts": frame(rows, KINDS["prompts"], ["profile"])}, tmp_path)
    text = str(Text(build(tmp_path, "nano").read_text()))
    assert "plain yes 8 25.0 [25.0, 25.0]" in text and "not run: no <chat> template" in text
    assert "GRPO 1 4 50 100 25 25 0" in text
    for name in ExperimentConfig.model_fields:
        assert f" {name} " in text
    assert "sample_budget not run" in text, "these tables are older than the field"


def test_a_gain_is_split_over_the_items_that_both_answered():
    tables = items({"base": [RIGHT, WRONG, NOTHING, CUT, RIGHT, RIGHT], "grpo": [RIGHT, RIGHT, WRONG, WRONG]})
    (row,) = gain_table(tables, "nano").to_dict("records")
    assert (row["items"], row["gain"], row["gain_of_form"]) == (4, pytest.approx(25.0), pytest.approx(25.0))


def test_the_machine_named_is_the_one_that_trained():
    """Tables made again on a laptop named the laptop, with its GPU and its packages, as the place where the numbers come from."""
    here = {"cpu": "a laptop", "cores": 8, "gpu": "a small one", "platform": "its system", "python": "3.14", "packages": {}}
    there = {"cpu": "a server", "gpu": None, "python": "3.11", "packages": {"torch": "2", "peft": "1"}}
    shown = {"processor": "a server", "GPU": "none", "Python": "3.11", "packages": "torch 2, peft 1"}
    once = {f"runs_{name}": value for name, value in there.items()}
    assert dict(provenance({**here, **once, "runs": {"a": {}, "b": {}}})) == shown
    assert dict(provenance({**here, "runs": {"a": there, "b": there}})) == shown  # as older manifests have it
    assert dict(provenance({**here, "runs": {"a": there, "b": there | {"cpu": "another"}}})) == shown | {
        "processor": "several, see manifest.json"
    }
    assert not provenance(here)  # tables of no runs
