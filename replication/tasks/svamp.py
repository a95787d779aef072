"""SVAMP (Patel et al. 2021, MIT licence): 1,000 one-step word problems, from a local file or from the Hub.

With ``source`` the 700/300 split is by content hash and the same on every machine; without it, the Hub's own split is used.
Nearly half the test items share their story (the body, numbers masked) with a training item: ``story_in_train`` marks them,
so that the accuracy on the others can be reported beside.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from replication.errors import UserError
from replication.tasks.problem import Problem, Task, content_version
from replication.tasks.prompts import QUESTION_ANSWER

SHA256 = "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e"  # the official SVAMP.json
COUNT, TEST, VALIDATION = 1000, 300, 100
#: Tokens that an answer may have, unless a config sets another limit.
LONGEST_COMPLETION = 256
HUB = "ChilleD/SVAMP"
HUB_TIMEOUT = 5.0  # seconds
#: What the IDs of a file of made-up items begin with: it says of itself that it is not SVAMP, and is taken for dry runs only.
MADE_UP = "made-up-"
_ADVICE = "give the official SVAMP.json with --svamp FILE (in Python: svamp_source=PATH)"


class Record(BaseModel):
    """One item as the official file spells it. The Hub's copy has the answer as text and one more column."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str = Field(alias="ID", min_length=1)
    body: str = Field(alias="Body", min_length=1)
    question: str = Field(alias="Question", min_length=1)
    answer: Decimal = Field(alias="Answer", allow_inf_nan=False)
    type: str = Field(alias="Type")

    @property
    def text(self) -> str:
        """Body and question as one text; a body that lacks its final stop gets a comma or a stop by how it reads."""
        body, question = self.body.strip(), self.question.strip()
        if body[-1] not in ".,;:!?":
            # "If he had 4 at the start" goes on into the question; anything else is a sentence of its own.
            conditional = re.match(r"(if|when|since|given)\b", re.split(r"[.!?]\s+", body)[-1], re.IGNORECASE)
            body += "," if conditional else "."
        return f"{body} {question}"


def load(source: str | Path | None = None) -> Task:
    """The task from the official JSON at ``source``, or from the Hub if there is none.

    Raises UserError if the file cannot be read or is not the official one; if a record of the Hub's copy is wrong, and when the
    Hub cannot be reached.
    """
    if source is None:
        return _load_hub()
    try:
        content = Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read SVAMP from {source}: {error.strerror}; {_ADVICE}") from None
    return _load_file(str(source), content)


@lru_cache(maxsize=4)
def _load_file(path: str, content: bytes) -> Task:
    made_up = content.count(f'"{MADE_UP}'.encode()) == COUNT
    if (found := hashlib.sha256(content).hexdigest()) != SHA256 and not made_up:
        raise UserError(f"{path} has sha256 {found}, the official SVAMP.json has {SHA256}: download it again")
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not whole JSON ({error}): make it again") from None
    ranked = sorted(parse(rows, path), key=_rank)
    return _task(ranked[TEST:], ranked[:TEST])


def _rank(record: Record) -> bytes:
    return hashlib.sha256(f"svamp:{record.id}:{record.text}".encode()).digest()


def is_made_up(task: Task) -> bool:
    """Whether the items are made up for a dry run; nothing measured on them is about SVAMP."""
    return all(problem.id.startswith(MADE_UP) for problem in task.test)


def parse(rows: Any, where: str) -> list[Record]:
    """Validated records; raises UserError naming the first record that is wrong, and how."""
    try:
        records = TypeAdapter(list[Record]).validate_python(rows)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise UserError(f"{where}: not a list of records") from None
        index, *field = first["loc"]
        row = rows[index]
        name = row.get("ID", "without ID") if isinstance(row, dict) else "not an object"
        raise UserError(f"{where}: record {index} ({name}): {'.'.join(map(str, field))} {first['msg'].lower()}") from None
    for what, values in (("ID", [r.id for r in records]), ("text", [r.text for r in records])):
        value, count = Counter(values).most_common(1)[0] if values else ("", 0)
        # The official file itself repeats no ID; texts are compared so that no item can stand in train and test.
        if count > 1:
            repeated = [r.id for r in records if value in (r.id, r.text)]
            raise UserError(f"{where}: {what} {value!r} occurs {count} times (records {', '.join(repeated[:5])})")
    return records


def _task(train: Sequence[Record], test: Sequence[Record]) -> Task:
    """Splits from a train and a test part; the last of train (in the order of their hashes) become the validation split."""
    fitted, validation, tested = ([_problem(r) for r in part] for part in (train[:-VALIDATION], train[-VALIDATION:], test))
    stories = {problem.meta["story"] for problem in fitted}
    validation, tested = (
        [replace(p, meta={**p.meta, "story_in_train": p.meta["story"] in stories}) for p in part] for part in (validation, tested)
    )
    version = content_version(fitted, validation, tested)
    splits = {"train": tuple(fitted), "validation": tuple(validation), "test": tuple(tested)}
    stops = QUESTION_ANSWER.stop_strings
    return Task("svamp", version, **splits, stop_strings=stops, max_new_tokens=LONGEST_COMPLETION)


def _problem(record: Record) -> Problem:
    text = record.text
    meta = {
        "type": record.type.replace("Divison", "Division"),
        # The body alone: SVAMP asks several questions about one story, and those are what leaks between splits.
        "story": re.sub(r"\d+(?:[.,]\d+)*", "#", " ".join(record.body.split()).rstrip(".")),
    }
    return Problem(record.id, QUESTION_ANSWER.text.format(question=text), record.answer, meta)


@lru_cache(maxsize=1)
def _load_hub() -> Task:
    """The Hub's 700/300 split, shuffled by content hash like the file's."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi().dataset_info(HUB, timeout=HUB_TIMEOUT)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        parts = {}
        for split in ("train", "test"):
            # JSON where there is one: parquet needs pyarrow, which nothing else here does.
            found = [n for n in names if split in Path(n).name and n.endswith((".json", ".parquet"))]
            found.sort(key=lambda name: (name.endswith(".parquet"), name))
            if not found:
                raise UserError(f"the Hub's {HUB} has no {split} file in JSON or parquet: {_ADVICE}")
            parts[split] = _rows(hf_hub_download(HUB, found[0], repo_type="dataset", revision=info.sha))
    except UserError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"the Hub's {HUB} is not whole JSON ({error}): {_ADVICE}") from None
    except Exception as error:  # the client's errors have no common base: no network, offline mode, no access, ...
        raise UserError(f"cannot download {HUB} from the Hub ({type(error).__name__}): {_ADVICE}") from None
    records = parse(parts["train"] + parts["test"], HUB)  # together: no item in both
    train, test = records[: len(parts["train"])], records[len(parts["train"]) :]
    if (len(train), len(test)) != (COUNT - TEST, TEST):
        counts = f"{len(train)} train and {len(test)} test records, not {COUNT - TEST} and {TEST}"
        raise UserError(f"the Hub's {HUB} has {counts}: {_ADVICE}")
    return _task(sorted(train, key=_rank), sorted(test, key=_rank))


def _rows(path: str) -> list[dict[str, Any]]:
    if path.endswith(".json"):
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    import pandas as pd

    try:
        return pd.read_parquet(path).to_dict("records")
    except ImportError:
        raise UserError(f"reading the Hub's parquet needs pyarrow: install it, or {_ADVICE}") from None
