"""SVAMP from the official file, where there is one, and from files that are not it."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from replication.errors import UserError
from replication.names import ROOT
from replication.tasks import Task, get_task, svamp

OFFICIAL = ROOT.parent / "shared" / "data" / "svamp" / "SVAMP.json"
needs_file = pytest.mark.skipif(not OFFICIAL.is_file(), reason="the official SVAMP.json is not beside this checkout")

ROW = {
    "ID": "chal-1",
    "Body": "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack",
    "Question": "How much do you have to pay to buy each pack?",
    "Equation": "( 76.0 - 25.0 )",
    "Answer": 51.0,
    "Type": "Subtraction",
}


def rows(**changes: object) -> list[dict]:
    """Three records, the second one changed; a value of None leaves the key out."""
    made = [{**ROW, "ID": f"chal-{i}", "Body": f"{i} {ROW['Body']}"} for i in range(3)]
    made[1] = {key: value for key, value in {**made[1], **changes}.items() if value is not None}
    return made


@pytest.fixture(scope="module")
def task() -> Task:
    return get_task("svamp", source=str(OFFICIAL))


@needs_file
def test_the_official_file(task: Task) -> None:
    assert (len(task.train) + len(task.validation), len(task.test)) == (700, 300)
    everything = [*task.train, *task.validation, *task.test]
    assert len({p.id for p in everything}) == len({p.prompt for p in everything}) == 1000
    assert all(p.id.startswith("chal-") for p in everything)
    assert max(p.answer for p in everything) == 22_090_603
    assert min(p.answer for p in everything) == 1
    assert {p.meta["type"] for p in everything} == {"Addition", "Subtraction", "Multiplication", "Common-Division"}


@pytest.mark.parametrize("cut", [b"]", b'"}]', b"\xff"])
def test_made_up_items_that_are_damaged_are_one_line(tmp_path: Path, cut: bytes) -> None:
    """A dry run's file has no checksum to hold it to."""
    path = tmp_path / "SVAMP.json"
    whole = json.dumps([{**ROW, "ID": f"{svamp.MADE_UP}{number}", "Body": f"{number}"} for number in range(svamp.COUNT)]).encode()
    path.write_bytes(whole.removesuffix(cut) + (cut if cut == b"\xff" else b""))
    with pytest.raises(UserError, match="is not whole JSON"):
        svamp.load(path)


@needs_file
def test_stories_shared_with_train_are_marked(task: Task) -> None:
    stories = {p.meta["story"] for p in task.train}
    marked = [p for p in task.test if p.meta["story_in_train"]]
    assert all((p.meta["story"] in stories) == p.meta["story_in_train"] for p in task.test)
    assert 0.3 < len(marked) / 300 < 0.6  # nearly half, by the same body under another question or other numbers


@needs_file
def test_the_split_depends_on_content_alone(tmp_path: Path, task: Task) -> None:
    copy = tmp_path / "renamed.json"
    copy.write_bytes(OFFICIAL.read_bytes())
    assert get_task("svamp", source=copy) == task


@needs_file
@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:1000],
        lambda b: b.replace(b"12 customers", b"13 customers", 1),
        lambda b: json.dumps(json.loads(b)[:999]).encode(),
        lambda b: b"\xff" + b,
        lambda b: b"{}",
    ],
)
def test_a_file_that_is_not_the_official_one(tmp_path: Path, damage) -> None:
    path = tmp_path / "SVAMP.json"
    path.write_bytes(damage(OFFICIAL.read_bytes()))
    with pytest.raises(UserError, match=r"SVAMP\.json has sha256"):
        get_task("svamp", source=path)
    path.write_bytes(OFFICIAL.read_bytes())  # mended: not the cached error
    assert len(get_task("svamp", source=path).test) == 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Answer": None}, r"record 1 \(chal-1\): Answer field required"),
        ({"Answer": "many"}, r"record 1 \(chal-1\): Answer"),
        ({"Answer": "NaN"}, r"record 1 \(chal-1\): Answer"),
        ({"Body": ""}, r"record 1 \(chal-1\): Body"),
        ({"ID": None}, r"record 1 \(without ID\): ID"),
        ({"ID": "chal-0"}, r"'chal-0' occurs 2 times"),
        ({"Body": f"0 {ROW['Body']}"}, r"occurs 2 times \(records chal-0, chal-1\)"),
    ],
)
def test_errors_name_the_record(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        svamp.parse(rows(**changes), "file.json")


def test_a_record_that_is_no_object() -> None:
    with pytest.raises(UserError, match=r"record 0 \(not an object\)"):
        svamp.parse([3], "file.json")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("Sam has 3 pens.", "Sam has 3 pens. How many?"),
        ("Sam has 3 pens", "Sam has 3 pens. How many?"),
        ("Tom came. If Sam has 3 pens", "Tom came. If Sam has 3 pens, How many?"),
        (" Sam has 3 pens , ", "Sam has 3 pens , How many?"),
    ],
)
def test_body_and_question_become_one_text(body: str, text: str) -> None:
    record = svamp.Record.model_validate({**ROW, "Body": body, "Question": "How many? "})
    assert record.text == text


def test_the_misspelt_type_is_division_and_answers_are_exact() -> None:
    record = svamp.Record.model_validate({**ROW, "Type": "Common-Divison", "Answer": 2.0})
    problem = svamp._problem(record)
    assert problem.meta["type"] == "Common-Division"
    assert problem.answer == Decimal(2)


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source=PATH"):
        get_task("svamp", source=tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot read SVAMP"):
        get_task("svamp", source=tmp_path)


def test_without_a_network_the_error_names_source(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(UserError, match="source=PATH"):
        get_task("svamp")


def test_the_hub_split_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The Hub's copy writes answers as text and has one more column.
    import huggingface_hub

    made = [{**ROW, "ID": f"chal-{i}", "Body": f"{i} {ROW['Body']}", "Answer": "51.0", "question_concat": ""} for i in range(1000)]
    (tmp_path / "train.json").write_text(json.dumps(made[:700]))
    (tmp_path / "test.json").write_text("\n".join(json.dumps(row) for row in made[700:]))

    class Sibling:
        def __init__(self, name: str) -> None:
            self.rfilename = name

    class Info:
        sha = "0" * 40
        # By its path a parquet file comes before the JSON beside it, and was taken for it.
        siblings = tuple(Sibling(f"{split}.json") for split in ("train", "test"))
        siblings += (Sibling("README.md"), *(Sibling(f"data/{split}-00000-of-00001.parquet") for split in ("train", "test")))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_args, **_kwargs: Info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _repo, name, **_kwargs: str(tmp_path / Path(name).name))
    svamp._load_hub.cache_clear()
    try:
        task = get_task("svamp")
        assert (len(task.train), len(task.validation), len(task.test)) == (600, 100, 300)
        assert {p.id for p in task.test} == {f"chal-{i}" for i in range(700, 1000)}
        # A split that lost items was taken for the whole; a file cut off was called a failed download.
        for content, words in ((json.dumps(made[700:705]), "5 test records, not 700 and 300"), ('[{"ID": ', "is not whole JSON")):
            svamp._load_hub.cache_clear()
            (tmp_path / "test.json").write_text(content)
            with pytest.raises(UserError, match=words):
                get_task("svamp")
    finally:
        svamp._load_hub.cache_clear()
