"""``python -m benchmarks``: measure, write tables and figures. ``make bench`` installs what it needs and calls this."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

PARTS = ("side_by_side", "memory", "scaling", "dense_vs_packed", "in_trl")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("``")[2].strip(": ."))
    parser.add_argument("--out", type=Path, default=Path("results/local/bench"), help="folder of the tables (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; nothing else is touched")
    parser.add_argument("--quick", action="store_true", help="few and small measurements, to see that everything runs")
    parser.add_argument("--figures-only", action="store_true", help="draw figures and text again from the tables in OUT")
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    from benchmarks import bench_in_trl, bench_memory, bench_runs, bench_scaling, bench_trl, figures
    from replication.errors import UserError

    try:
        for name, module in zip(PARTS, (bench_trl, bench_memory, bench_scaling, bench_runs, bench_in_trl), strict=True):
            if name in options.parts and not options.figures_only:
                print(f"{name}: {module.__doc__.splitlines()[0]}", flush=True)
                module.main(options.out, quick=options.quick)
        figures.write_all(options.out)
        print((options.out / "summary.md").read_text())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
