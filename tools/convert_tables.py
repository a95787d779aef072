"""Convert committed tables of an earlier form to the present columns: `python -m tools.convert_tables results/nano`.

Predicted FLOPs and bytes go, since they were never measured. Item rows get split (they were test items), and template and reward,
which are empty: they were not recorded. Large tables are compressed, and the verdicts are judged anew from the converted tables.
No number that a run measured is changed.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from replication.errors import UserError
from replication.names import CLAIMS
from replication.runs import now, read_json
from replication.statistics import verdicts
from replication.tables import KINDS, SUFFIXES, parse, write_tables

PREDICTED = ("predicted_flops", "predicted_bytes")


def convert(folder: Path) -> None:
    """Read the tables in ``folder``, whose checksums must be those of its manifest, and write them in the present form."""
    sums = read_json(folder / "manifest.json", "a manifest")["tables"]
    tables = {}
    for path in sorted(path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}")):
        data, name = path.read_bytes(), path.name.split(".")[0]
        if hashlib.sha256(data).hexdigest() != sums[path.name]:
            raise UserError(f"{path} has not the checksum in manifest.json: restore it first")
        tables[name] = parse(data, path, KINDS.get(name, {}), ())
    tables["runs"] = tables["runs"].drop(columns=[name for name in PREDICTED if name in tables["runs"]])
    tables["curves"] = tables["curves"][~tables["curves"]["metric"].isin(PREDICTED)]
    for name in ("items", "ablation_items"):
        table = tables[name]
        table = table if "split" in table else table.assign(split="test")
        tables[name] = table.reindex(columns=["schema_version", *KINDS[name]])
    tables["verdicts"] = verdicts(CLAIMS, tables)
    note = {"by": "tools/convert_tables.py", "made": now(), "from": {name: sums[name] for name in sorted(sums)}}
    write_tables(tables, folder, notes={"converted": note})


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        convert(Path(argument))
