"""The CSV files of the tables: which columns there are, writing them byte for byte alike, reading them with every check."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from replication.errors import UserError
from replication.names import SCHEMA_VERSION
from replication.runs import RunSummary, atomic_write, explained, make_folder, read_json, to_json

if TYPE_CHECKING:
    from pydantic import BaseModel

SECONDS = ("rollout_s", "score_s", "update_s", "evaluation_s")
PEAKS = ("peak_rss_bytes", "peak_gpu_bytes")
#: The config fields that come first in runs.csv; the others follow in the order of the config.
_FIRST = ("profile", "task", "method", "selector", "seed", "learning_rate", "lora_rank", "lora_alpha", "denominator", "cutoff")
_FIRST += ("keep_probability", "max_kept_tokens")


def _kind(annotation: Any) -> str:
    """float, int, bool or str (lists are JSON in a str) of a field's type, None aside."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = {_kind(part) for part in parts if part is not type(None)}
        return kinds.pop() if len(kinds) == 1 else "str"
    if origin is typing.Literal:
        return "int" if all(type(part) is int for part in parts) else "str"
    return {float: "float", int: "int", bool: "bool"}.get(annotation, "str")


_SUMMARY = {name: _kind(field.annotation) for name, field in RunSummary.model_fields.items()}
_RESULTS = {name: kind for name, kind in _SUMMARY.items() if name not in ("run_id", "status", "reason")}
#: The kind of each column. Columns not listed (config fields, further columns of the verdicts) show theirs by their content.
KINDS: dict[str, dict[str, str]] = {
    "runs": {"run_id": "str", "ablation": "str", "seed": "int", "command": "str", "status": "str", "reason": "str", **_RESULTS},
    "curves": {"run_id": "str", "step": "int", "metric": "str", "value": "float"},
    "items": {"run_id": "str", "item_id": "str", "correct": "int", "truncated": "int", "parsed": "int"},
    "ablation_items": {"run_id": "str", "item_id": "str", "correct": "int"},
    "timings": {"run_id": "str", "seconds": "float", **dict.fromkeys(SECONDS, "float"), **dict.fromkeys(PEAKS, "int")},
    # Optional: made by `prompts`, from the base under each prompt template.
    "prompts": {
        **dict.fromkeys(("profile", "model", "task", "template"), "str"),
        **{"chosen": "bool", "run_id": "str", "status": "str", "reason": "str", "items": "int"},
        **{
            f"{share}{end}": "float"
            for share in ("accuracy", "parsable_share", "accuracy_of_parsable", "truncated_share")
            for end in ("", "_low", "_high")
        },
    },
    # Optional: made by `diagnose`, from groups sampled afresh and not from runs.
    "credit": {
        **dict.fromkeys(("profile", "task", "policy", "method", "selector", "quantity", "unit"), "str"),
        **{"value": "float", "low": "float", "high": "float", "n": "int", "redraws": "int", "seed": "int"},
    },
    "worked_example": {
        **{"profile": "str", "task": "str", "item_id": "str", "prompt": "str", "group_size": "int", "right_in_group": "int"},
        **{"completion": "int", "correct": "int", "position": "int", "token": "str", "decisive": "int", "worth": "float"},
        **{"method": "str", "selector": "str", "credit": "float"},
    },
    "verdicts": {"claim": "str", "paper_value": "str", "value": "float", "low": "float", "high": "float", "verdict": "str"},
}
_REQUIRED = {name: tuple(kinds) for name, kinds in KINDS.items()}
_REQUIRED["runs"] = ("run_id", "ablation", "task", "method", "seed", "status", "accuracy")
_REQUIRED["items"] = ("run_id", "item_id", "correct", "truncated")
_REQUIRED["timings"] = ("run_id",)
#: Integer columns without holes; the others are float64 in a frame, since NaN is a float.
_WHOLE = {"schema_version", "seed", "step", "correct", "truncated"}


def as_text(value: Any) -> Any:
    """Lists and mappings as compact JSON; anything else as it is."""
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list | dict) else value


def run_columns(config: type[BaseModel]) -> dict[str, str]:
    """The columns of runs.csv and their kinds: first those a reader looks for, then the other fields, then what came out."""
    kinds = {name: _kind(field.annotation) for name, field in config.model_fields.items()} | {"selector": "str"}
    first = {name: kinds.pop(name) for name in _FIRST if name in kinds}
    head = {"run_id": "str", "ablation": "str"}
    return {**head, **first, **kinds, "command": "str", "status": "str", "reason": "str", **_RESULTS}


def frame(rows: Iterable[Mapping[str, Any]], kinds: Mapping[str, str], order: list[str]) -> pd.DataFrame:
    """Rows as a sorted frame: int64 or float64 (NaN = missing) numbers, ``str`` texts, the schema version first."""
    rows = list(rows)
    columns = {"schema_version": pd.Series([SCHEMA_VERSION] * len(rows), dtype="int64")}
    for name, kind in kinds.items():
        columns[name] = _column([row.get(name) for row in rows], name, kind)
    return pd.DataFrame(columns).sort_values(order, kind="stable", ignore_index=True)


def _column(values: list[Any], name: str, kind: str) -> pd.Series:
    if kind in ("int", "float"):
        return pd.Series(values, dtype="int64" if name in _WHOLE else "float64")
    return pd.Series(values, dtype="bool" if kind == "bool" else "str")


def write_tables(
    tables: Mapping[str, pd.DataFrame],
    out_dir: str | Path,
    manifest: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write each table to ``out_dir``/<name>.csv and its sha256 into manifest.json beside them, all of them or none.

    Floats have six significant digits, lines end in "\\n", empty is missing: equal tables, equal bytes. Without a manifest the
    one that is there is kept, and only ``notes`` and the checksums of these tables change in it.

    The tables lie ready under other names when the manifest with their checksums is written; that is the moment they become
    the tables. Whoever opens the folder next gives them their names if this process no longer could.

    Raises:
        UserError: if the folder cannot be written; the tables are then all as they were, or all new.
    """
    out_dir = Path(out_dir)
    make_folder(out_dir)
    texts = {name: _csv(table, name) for name, table in tables.items()}
    path = out_dir / "manifest.json"
    earlier = _earlier_manifest(path)
    whole = {**(manifest if manifest is not None else earlier), **(notes or {})}
    sums = {name: text for name, text in _sums(earlier).items() if (out_dir / name).exists()}
    if "diagnostics" in earlier:  # what credit.csv was made from outlives a rebuilding of the tables from runs
        whole.setdefault("diagnostics", earlier["diagnostics"])
    for name, text in texts.items():
        atomic_write(out_dir / f"{name}.csv", text)
        sums[f"{name}.csv"] = hashlib.sha256(text.encode()).hexdigest()
    atomic_write(path, to_json(whole | {"tables": dict(sorted(sums.items()))}, indent=2) + "\n")


def _sums(manifest: Mapping[str, Any]) -> dict[str, Any]:
    sums = manifest.get("tables")
    return sums if isinstance(sums, dict) else {}


def _earlier_manifest(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, "a manifest") if path.exists() else {}
    except UserError:  # damaged: it is about to be written anew
        found = {}
    return found if isinstance(found, dict) else {}


def _csv(table: pd.DataFrame, name: str) -> str:
    kinds = KINDS.get(name, {})
    if "schema_version" not in table.columns:
        table = table.assign(schema_version=SCHEMA_VERSION)[["schema_version", *table.columns]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    cells = [[_cell(value, kinds.get(str(column))) for value in table[column].tolist()] for column in table.columns]
    writer.writerows(zip(*cells, strict=True))
    return text.getvalue()


def _cell(value: Any, kind: str | None = None) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if kind == "int" or (value.is_integer() and abs(value) < 2**53) else f"{value:.6g}"
    return str(as_text(value))


def read_tables(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The tables that lie in a folder, by name (runs, curves, items, timings, verdicts, ...), columns by name, numbers as numbers.

    Raises:
        UserError: naming file and column, if there are none, or one is cut off, garbled, edited or of another schema version.
    """
    folder = Path(folder)
    return _read_tables(folder)


def _read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    sums = {}
    if (folder / "manifest.json").exists():
        found = read_json(folder / "manifest.json", "a manifest")
        sums = _sums(found) if isinstance(found, dict) else {}
    tables = {}
    for path in sorted(folder.glob("*.csv")):
        if path.name in sums and _sha256(path) != sums[path.name]:
            raise UserError(f"{path} is not the file that manifest.json has the checksum of (cut off, edited?): {_remedy(path)}")
        raw = read_csv(path, _REQUIRED.get(path.stem, ()))
        tables[path.stem] = _typed(raw, path)
    if not tables:
        raise UserError(f"no tables in {folder}: make them with `make all` or `make report`")
    return tables


def _remedy(path: Path) -> str:
    """How a table that is damaged is made anew: those that no run is in are measured again."""
    if path.stem in ("credit", "worked_example"):
        return f"measure it again with `python -m replication diagnose --out {path.parent}`"
    if path.stem == "prompts":
        return "remove it and measure it again with `make prompts`"
    return "rebuild it with `make report`"


def _sha256(path: Path) -> str:
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path: Path) -> bytes:
    with explained(path):
        return path.read_bytes()


def read_csv(path: Path, required: Sequence[str]) -> pd.DataFrame:
    """Every cell as text, after the checks of form."""
    data = _bytes(path)
    if not data.endswith(b"\n"):
        raise UserError(f"{path} is empty or cut off in its last line: {_remedy(path)}")
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is garbled ({error}): {_remedy(path)}") from None
    header = rows[0]
    for column in ("schema_version", *required):
        if column not in header:
            raise UserError(f"{path} has no column {column}, so it is garbled or of an older schema: {_remedy(path)}")
    if len(set(header)) < len(header):
        raise UserError(f"{path} has a column twice: {_remedy(path)}")
    place = header.index("schema_version")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise UserError(f"{path}, row {number} has {len(row)} cells, the header {len(header)}: {_remedy(path)}")
        if row[place] != str(SCHEMA_VERSION):
            what = f"{row[place]!r}, this code reads {SCHEMA_VERSION}"
            raise UserError(f"{path}, column schema_version, row {number} is {what}: {_remedy(path)}")
    return pd.DataFrame(rows[1:], columns=header, dtype="str")


def _typed(raw: pd.DataFrame, path: Path) -> pd.DataFrame:
    kinds = dict(KINDS.get(path.stem, {}))
    if path.stem == "runs":
        from replication.config import ExperimentConfig

        kinds = run_columns(ExperimentConfig) | kinds
    kinds["schema_version"] = "int"
    columns = {}
    for name in raw.columns:
        texts = [text if text != "" else None for text in raw[name].tolist()]
        kind = kinds.get(name) or ("float" if _all_numbers(texts) else "str")
        if kind == "bool":
            columns[name] = pd.Series([text == "true" for text in texts], dtype="bool")
            continue
        if kind in ("int", "float"):
            texts = [_number(text, path, name, number) for number, text in enumerate(texts, start=2)]
        columns[name] = _column(texts, name, kind)
    return pd.DataFrame(columns)


def _all_numbers(texts: Sequence[str | None]) -> bool:
    try:
        return any(text is not None for text in texts) and all(text is None or math.isfinite(float(text)) for text in texts)
    except ValueError:
        return False


def _number(text: str | None, path: Path, column: str, row: int) -> int | float | None:
    if text is None and column not in _WHOLE:
        return None
    try:
        value = int(text or "") if column in _WHOLE else float(text or "")
        if abs(value) >= 2**63 and column in _WHOLE:
            raise ValueError
        return value
    except ValueError:
        raise UserError(f"{path}, column {column}, row {row} is {text!r} and should be a number: {_remedy(path)}") from None
