"""Keep the finished runs of a long sweep in a few small archives, so that the loss of a machine does not cost hours of it.

    python -m tools.pack save RUNS PACKS     put the finished runs that are in no archive of PACKS yet into a new one
    python -m tools.pack load RUNS PACKS     unpack into RUNS the runs that are missing there

A packed run has all that tables are built from, and no weights, samples or checkpoints. A sweep leaves it alone as finished.
"""

from __future__ import annotations

import argparse
import io
import re
import tarfile
from pathlib import Path

FILES = ("config.json", "items.csv", "manifest.json", "metrics.jsonl", "timings.jsonl", "summary.json")


def packed(packs: Path) -> set[str]:
    """The run ids in the archives of a folder."""
    found = set()
    for archive in sorted(packs.glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            found |= {name.partition("/")[0] for name in tar.getnames()}
    return found


def save(runs: Path, packs: Path) -> int:
    """Pack the finished runs that no archive has yet; returns how many."""
    known = packed(packs)
    new = [path.parent for path in sorted(runs.glob("*/summary.json")) if path.parent.name not in known]
    if new:
        packs.mkdir(parents=True, exist_ok=True)
        archive = packs / f"{len(list(packs.glob('*.tar.xz'))) + 1:03d}.tar.xz"
        with tarfile.open(archive, "w:xz") as tar:
            for file in (folder / name for folder in new for name in FILES):
                if file.exists():
                    data = file.read_bytes()
                    if file.name == "manifest.json":  # its command must not name a folder of the machine that ran it
                        data = re.sub(rb"--out [^\"]*", b"--out " + file.parent.name.encode(), data)
                    info = tarfile.TarInfo(f"{file.parent.name}/{file.name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return len(new)


def load(runs: Path, packs: Path) -> int:
    """Unpack the runs that have no summary in ``runs``; returns how many."""
    there = {path.parent.name for path in runs.glob("*/summary.json")}
    missing = packed(packs) - there
    for archive in sorted(packs.glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            # summary.json stands last: a run that was unpacked by half does not count as finished.
            tar.extractall(runs, [one for one in tar if one.name.partition("/")[0] in missing], filter="data")
    return len(missing)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.pack", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["save", "load"])
    parser.add_argument("runs", type=Path, help="the folder of run directories")
    parser.add_argument("packs", type=Path, help="the folder of archives")
    options = parser.parse_args()
    count = {"save": save, "load": load}[options.what](options.runs, options.packs)
    print(f"{options.what}: {count} runs")


if __name__ == "__main__":
    main()
