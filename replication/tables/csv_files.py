"""The CSV files of the tables: their columns, written the same way every time, and read with a check that they are whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import types
import typing
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from replication.config import ExperimentConfig
from replication.errors import UserError
from replication.names import SCHEMA_VERSION
from replication.runs import RunSummary, atomic_write, explained, make_folder, read_json, to_json

if TYPE_CHECKING:
    from pydantic import BaseModel

#: A table with more bytes than this is compressed: name.csv.gz.
COMPRESSED_OVER = 4_000_000
SUFFIXES = (".csv", ".csv.gz")
SECONDS = ("rollout_s", "score_s", "update_s", "evaluation_s")
PEAKS = ("peak_rss_bytes", "peak_gpu_bytes")
PROMPT_SHARES = ("accuracy", "parsable_share", "accuracy_of_parsable", "truncated_share", "stopped_share")
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
RESULTS = {name: kind for name, kind in _SUMMARY.items() if name not in ("run_id", "status", "reason")}
_ITEMS = {"run_id": "str", "split": "str", "item_id": "str", "template": "str", "correct": "int", "reward": "float",
          "truncated": "int", "parsed": "int"}  # fmt: skip
#: The kind of each column. Columns not listed (config fields, further columns of the verdicts) show theirs by their content.
KINDS: dict[str, dict[str, str]] = {
    "runs": {"run_id": "str", "ablation": "str", "seed": "int", "command": "str", "status": "str", "reason": "str", **RESULTS},
    "curves": {"run_id": "str", "step": "int", "metric": "str", "value": "float"},
    "items": _ITEMS,
    "ablation_items": _ITEMS,
    "timings": {"run_id": "str", "seconds": "float", **dict.fromkeys(SECONDS, "float"), **dict.fromkeys(PEAKS, "int")},
    # Optional: made by `prompts`, from the base under each prompt template.
    "prompts": {
        **dict.fromkeys(("profile", "model", "task", "template"), "str"),
        **{"chosen": "bool", "run_id": "str", "status": "str", "reason": "str", "items": "int"},
        **{f"{share}{end}": "float" for share in PROMPT_SHARES for end in ("", "_low", "_high")},
    },
    # Optional: made by `diagnose`, from groups sampled afresh and not from runs.
    "credit": {
        **dict.fromkeys(("profile", "task", "asides", "method", "selector", "quantity", "unit"), "str"),
        **{"value": "float", "low": "float", "high": "float", "n": "int", "redraws": "int", "seed": "int"},
    },
    "worked_example": {
        **dict.fromkeys(("profile", "task", "asides", "item_id", "prompt"), "str"),
        **{"group_size": "int", "right_in_group": "int"},
        **{"completion": "int", "correct": "int", "position": "int", "token": "str", "decisive": "int", "worth": "float"},
        **{"method": "str", "selector": "str", "credit": "float"},
    },
    "verdicts": {"claim": "str", "paper_value": "str", "value": "float", "low": "float", "high": "float", "verdict": "str"},
}
#: Integer columns without holes; the others are float64 in a frame, since NaN is a float.
_WHOLE = {"schema_version", "seed", "step"}


def as_text(value: Any) -> Any:
    """Lists and mappings as compact JSON; anything else as it is."""
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list | dict) else value


def run_columns(config: type[BaseModel]) -> dict[str, str]:
    """The columns of runs.csv and their kinds: first those a reader looks for, then the other fields, then what came out."""
    # A field that a config leaves out where it is not set changes no number.
    kept = {name: field for name, field in config.model_fields.items() if field.exclude_if is None}
    kinds = {name: _kind(field.annotation) for name, field in kept.items()} | {"selector": "str"}
    first = {name: kinds.pop(name) for name in _FIRST if name in kinds}
    head = {"run_id": "str", "ablation": "str"}
    return {**head, **first, **kinds, "command": "str", "status": "str", "reason": "str", **RESULTS}


def _dtype(name: str, kind: str) -> str:
    if kind == "int":
        return "int64" if name in _WHOLE else "float64"
    return {"float": "float64", "bool": "bool"}.get(kind, "str")


def frame(rows: Iterable[Mapping[str, Any]], kinds: Mapping[str, str], order: list[str]) -> pd.DataFrame:
    """Rows as a sorted frame: int64 or float64 (NaN = missing) numbers, ``str`` texts, the schema version first."""
    rows = list(rows)
    columns = {"schema_version": pd.Series([SCHEMA_VERSION] * len(rows), dtype="int64")}
    for name, kind in kinds.items():
        columns[name] = pd.Series([row.get(name) for row in rows], dtype=_dtype(name, kind))
    return pd.DataFrame(columns).sort_values(order, kind="stable", ignore_index=True)


def write_tables(
    tables: Mapping[str, pd.DataFrame],
    out_dir: str | Path,
    manifest: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write each table to ``out_dir``/<name>.csv (large ones to <name>.csv.gz), and their sha256 into manifest.json.

    Floats have six significant digits, lines end in "\\n", empty is missing: equal tables, equal bytes. Without a manifest the one
    that is there is kept, and only ``notes`` and the checksums of these tables change in it. A file is replaced whole. The
    manifest loses the checksums of these tables first and gets the new ones last, so a killed writer leaves no stale one.

    Raises:
        UserError: if the folder cannot be written.
    """
    out_dir = Path(out_dir)
    make_folder(out_dir)
    path = out_dir / "manifest.json"
    earlier = _earlier_manifest(path)
    whole = {**(manifest if manifest is not None else earlier), **(notes or {})}
    if "diagnostics" in earlier:  # what credit.csv was made from outlives a rebuilding of the tables from runs
        whole.setdefault("diagnostics", earlier["diagnostics"])
    own = {f"{name}{suffix}" for name in tables for suffix in SUFFIXES}
    sums = {name: value for name, value in earlier.get("tables", {}).items() if name not in own and (out_dir / name).exists()}
    atomic_write(path, to_json(whole | {"tables": sums}, indent=2) + "\n")
    for name, table in tables.items():
        data = table_bytes(table)
        suffix = SUFFIXES[len(data) > COMPRESSED_OVER]
        if suffix == ".csv.gz":
            data = compressed(data)
        atomic_write(out_dir / f"{name}{suffix}", data)
        sums[f"{name}{suffix}"] = hashlib.sha256(data).hexdigest()
        with explained(out_dir):
            (out_dir / f"{name}{SUFFIXES[suffix == '.csv']}").unlink(missing_ok=True)
    atomic_write(path, to_json(whole | {"tables": dict(sorted(sums.items()))}, indent=2) + "\n")


def compressed(data: bytes) -> bytes:
    """gzip without a time and a name in its header: the same bytes for the same data."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


def _earlier_manifest(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, "a manifest") if path.exists() else {}
    except UserError:  # damaged: it is about to be written anew
        return {}


def table_bytes(table: pd.DataFrame) -> bytes:
    """A table as CSV."""
    table = table.copy()
    if "schema_version" not in table.columns:
        table.insert(0, "schema_version", SCHEMA_VERSION)
    for name in table.select_dtypes(bool):
        table[name] = table[name].map({True: "true", False: "false"})
    return table.to_csv(index=False, lineterminator="\n", float_format=_number).encode("utf-8", "backslashreplace")


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else f"{value:.6g}"


def read_tables(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The tables that lie in a folder, by name (runs, curves, items, timings, verdicts, ...), columns by name, numbers as numbers.

    Raises:
        UserError: naming the file, if there are none, or one is cut off, garbled, edited or of another schema version.
    """
    folder = Path(folder)
    sums = read_json(folder / "manifest.json", "a manifest").get("tables", {}) if (folder / "manifest.json").exists() else {}
    tables = {}
    for path in sorted(path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}")):
        with explained(path):
            data = path.read_bytes()
        if path.name in sums and hashlib.sha256(data).hexdigest() != sums[path.name]:
            raise UserError(f"{path} is not the file that manifest.json has the checksum of (cut off, edited?): {_remedy(path)}")
        tables[_name(path)] = parse(data, path, columns_of(_name(path)))
    if not tables:
        raise UserError(f"no tables in {folder}: make them with `make all` or `make report`")
    return tables


def _name(path: Path) -> str:
    return path.name.split(".")[0]


def columns_of(name: str) -> dict[str, str]:
    """The columns of a table and their kinds; none of a table that has no schema."""
    return run_columns(ExperimentConfig) if name == "runs" else KINDS.get(name, {})


def _remedy(path: Path) -> str:
    """How a damaged table is made anew: those that no run is in are measured again."""
    if _name(path) in ("credit", "worked_example"):
        return f"measure it again with `python -m replication diagnose --out {path.parent}`"
    if _name(path) == "prompts":
        return "remove it and measure it again with `make prompts`"
    return "rebuild it with `make report`"


def parse(data: bytes, path: Path, kinds: Mapping[str, str], required: Sequence[str] | None = None) -> pd.DataFrame:
    """The table that a file holds.

    Args:
        data: its bytes, compressed if its name ends in .gz.
        path: for messages.
        kinds: of the columns that are known; the kind of the others follows from what is in them.
        required: columns that must be there; by default all known ones, of runs those that every version has.

    Raises:
        UserError: with one line that names the file and says how to make it anew.
    """
    try:
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        if not data.endswith(b"\n"):
            raise ValueError("empty, or cut off in its last line")
        # Every text that is not empty stays a text: an item may be called NA.
        dtypes = {"schema_version": "int64", **{name: _dtype(name, kind) for name, kind in kinds.items()}}
        table = pd.read_csv(io.BytesIO(data), dtype=dtypes, keep_default_na=False, na_values=[""], low_memory=False)
    except (ValueError, OverflowError, EOFError, OSError, zlib.error) as error:  # pandas' and UTF-8's errors are ValueErrors
        raise UserError(f"{path} is garbled ({' '.join(str(error).split())}): {_remedy(path)}") from None
    if required is None:
        required = ("run_id", "ablation", "task", "method", "seed", "status", "accuracy") if _name(path) == "runs" else tuple(kinds)
    for column in ("schema_version", *required):
        if column not in table.columns:
            raise UserError(f"{path} has no column {column}, so it is garbled or of an older schema: {_remedy(path)}")
    for version in table["schema_version"].unique():
        if version != SCHEMA_VERSION:
            raise UserError(f"{path} has schema_version {version}, this code reads {SCHEMA_VERSION}: {_remedy(path)}")
    guessed = table.columns.difference(list(dtypes))
    return table.astype({name: "float64" for name in guessed if pd.api.types.is_integer_dtype(table[name])})
