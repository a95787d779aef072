"""What reads input: each target takes any bytes and raises only if a promise is broken."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from replication.config import ExperimentConfig, load_profile, parse_settings
from replication.errors import UserError
from replication.statistics import load_claims
from replication.tables import KINDS, read_tables, write_tables
from replication.tasks import extract_answer, svamp

_SCRATCH = Path(tempfile.mkdtemp(prefix="any-bytes-"))


def _file(name: str, data: bytes) -> Path:
    path = _SCRATCH / name
    path.write_bytes(data)
    return path


def answers(data: bytes) -> None:
    """A finite number or none; an answer stated at the end wins over whatever stands before it."""
    text = data.decode("utf-8", "surrogateescape")
    value = extract_answer(text)
    assert value is None or value.is_finite()
    assert extract_answer(f"{text}\nThe answer is 17.") == 17


def svamp_records(data: bytes) -> None:
    """Any JSON gives records with distinct ids and finite answers, or one line of error."""
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        records = svamp.parse(rows, "file")
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert len({record.id for record in records}) == len(records) and all(record.answer.is_finite() for record in records)


def claims(data: bytes) -> None:
    """A claims file gives claims with distinct ids, or one line of error."""
    try:
        found = load_claims(_file("claims.yaml", data))
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert len({claim.id for claim in found}) == len(found)


def config(data: bytes) -> None:
    """A setting of the command line gives a config that is written and read back as itself, or one line of error."""
    settings = data.decode("utf-8", "replace").split("\x1e")
    try:
        made = load_profile("smoke", **{"task": "multiplication", "method": "s_grpo", **parse_settings(settings)})
    except UserError:
        return
    except TypeError as error:  # a field given twice to Python itself: the command line refuses those before
        assert "multiple values" in str(error)
        return
    assert ExperimentConfig(**json.loads(json.dumps(made.model_dump(mode="json")))) == made


def tables(data: bytes) -> None:
    """A table is read to what, written and read again, is the same bytes; or one line of error that names the file."""
    name, _, content = data.partition(b"\n")
    stem = sorted(KINDS)[sum(name) % len(KINDS)]
    folder = _SCRATCH / "tables"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / f"{stem}.csv").write_bytes(content)
    try:
        found = read_tables(folder)
    except UserError as error:
        assert str(folder) in str(error)
        return
    write_tables(found, folder, {})
    once = (folder / f"{stem}.csv").read_bytes()
    write_tables(read_tables(folder), folder, {})
    assert (folder / f"{stem}.csv").read_bytes() == once


TARGETS = {target.__name__: target for target in (answers, svamp_records, claims, config, tables)}
