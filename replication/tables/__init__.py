"""From run folders to tidy CSV tables and back.

In: planned runs and their folders. Out: data frames by name (runs, curves, items, ...) and the CSV files they are stored in.
Start with ``build``; ``csv_files`` defines the columns and reads and writes the files.
"""

from __future__ import annotations

from replication.tables.build import build_tables, tables_manifest
from replication.tables.csv_files import KINDS, PROMPT_SHARES, columns_of, frame, parse, read_tables, run_columns, write_tables

__all__ = [
    "KINDS",
    "PROMPT_SHARES",
    "build_tables",
    "columns_of",
    "frame",
    "parse",
    "read_tables",
    "run_columns",
    "tables_manifest",
    "write_tables",
]
