"""The command line behind the Makefile: python -m replication COMMAND.

Exit status: 0 done; 1 a run failed or diverged, or is missing after a sweep; 2 bad usage or something the user can mend, said
in one line on stderr; 129, 130 or 143 stopped by a signal with the work saved. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from replication import signals
from replication.console import say, to_nowhere
from replication.errors import Stopped, UserError

PROFILE_HELP = "smoke (CPU, minutes, no evidence), nano (CPU, the lab) or paper (GPU)"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m replication", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(signals=name in ("run", "sweep", "notebooks", "dryrun"))
        return added

    def results(added: argparse.ArgumentParser) -> None:
        added.add_argument("--profile", default="nano", help=PROFILE_HELP)
        added.add_argument("--out", type=Path, metavar="DIR", help="results folder (default: results/local/PROFILE)")

    def plan(added: argparse.ArgumentParser) -> None:
        added.add_argument("--plan", default="default", help="default, or full: more seeds and finer grids")
        added.add_argument("--seeds", type=int, metavar="N", help="seeds of the headline comparison (default: the profile's)")
        settings(added)

    def settings(added: argparse.ArgumentParser) -> None:
        added.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="another value of a config field")
        added.add_argument("--svamp", metavar="FILE", help="the official SVAMP.json (default: download from the Hub)")

    run = command("run", "train and evaluate one run in this process, or resume it; a finished one is left alone")
    run.add_argument("--profile", required=True, help=PROFILE_HELP)
    run.add_argument("--task", required=True, help="word_problems, multiplication or svamp")
    run.add_argument("--method", required=True, help="base, grpo, s_grpo or t_spmo")
    run.add_argument("--seed", type=int, required=True, help="the one seed, 0 or more")
    settings(run)
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="the run's own folder")

    sweep = command("sweep", "run what is missing of a plan in worker processes, then write the tables")
    results(sweep)
    sweep.add_argument("--ablation", action="append", metavar="A", help="only this ablation (may be repeated; default: all)")
    sweep.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core, or per GPU)")
    sweep.add_argument("--engine", default="local", choices=("local", "ray"), help="processes of this machine, or a Ray cluster")
    sweep.add_argument("--address", metavar="HOST:PORT", help="of the Ray cluster (default: auto, the one this machine belongs to)")
    sweep.add_argument("--list", action="store_true", help="print the planned runs and their commands, and run nothing")
    plan(sweep)

    report = command("report", "tables from the run directories if there are any, verdicts, then report.html")
    results(report)

    diagnose = command("diagnose", "measure credit against the truth and the gradient's noise into credit.csv (1 to 2 minutes)")
    results(diagnose)
    diagnose.add_argument("--task", default="word_problems", help="word_problems or multiplication: where the truth is known")
    diagnose.add_argument("--problems", type=int, default=70, metavar="N", help="validation problems (default: 70)")
    diagnose.add_argument("--redraws", type=int, default=16, metavar="K", help="groups sampled for each problem (default: 16)")
    diagnose.add_argument(
        "--run", type=Path, action="append", default=[], metavar="DIR", help="also at the end of this finished run"
    )
    diagnose.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="another value of a config field")

    prompts = command("prompts", "measure the base under each prompt template on the validation split into prompts.csv")
    results(prompts)
    settings(prompts)

    figures = command("figures", "draw every figure from the tables")
    results(figures)

    notebooks = command("notebooks", "run the notebooks by papermill and write them as pages")
    results(notebooks)
    notebooks.add_argument("names", nargs="*", metavar="NAME", help="notebooks without their suffix (default: all)")
    notebooks.add_argument("--no-train", action="store_true", help="let them read the tables only, and train nothing")
    notebooks.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another value of a notebook parameter")

    verify = command("verify", "compare your tables with the committed ones, claim by claim")
    results(verify)
    verify.add_argument("--committed", type=Path, metavar="DIR", help="the other tables (default: results/PROFILE)")

    publish = command("publish", "copy tables, figures and pages of your results over the committed ones")
    results(publish)
    publish.add_argument("--to", type=Path, metavar="DIR", help="where to (default: results/PROFILE)")

    dryrun = command("dryrun", "the paper profile in minutes on a CPU, offline: a random model, two steps each (no evidence)")
    dryrun.add_argument("--out", type=Path, default=Path("results/local/dryrun"), metavar="DIR", help="its folder")
    dryrun.add_argument("--svamp", metavar="FILE", help="the official SVAMP.json (default: made-up items of its schema)")
    dryrun.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")

    base = command("base", "pre-train the nano base into a new folder and compare it with the shipped one")
    base.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
    base.add_argument("--steps", type=int, metavar="N", help="fewer optimizer steps than the shipped base had")
    base.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads; the weights' bits depend on them")

    bench = command("bench", "measure this project beside another implementation (extra bench)")
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to python -m benchmarks")

    provenance = command("provenance", "say which runs, commit and machine a figure or table was made by")
    provenance.add_argument("file", type=Path, metavar="FILE")
    return parser


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _is_bad_input(error: BaseException) -> bool:
    # Told by name, so that pydantic need not be imported for --help.
    return isinstance(error, UserError | OSError) or type(error).__name__ == "ValidationError"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = argparse.Namespace(command=None, signals=False)
    try:
        options = _parser().parse_args(arguments)
        with signals.handled() if options.signals else contextlib.nullcontext():
            from replication import commands

            status = getattr(commands, options.command)(options)
            sys.stdout.flush()
            return status
    except Stopped as stopped:
        say(f"stopped by {signal.Signals(stopped.signum).name}, the work so far is saved: start again to go on")
        return 128 + stopped.signum
    except KeyboardInterrupt:
        say("stopped")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `... | head` has read enough; what was to be done besides printing may not be done
        to_nowhere(1)
        return 0 if options.command in ("verify", "provenance") or getattr(options, "list", False) else 1
    except Exception as error:
        if not _is_bad_input(error):
            raise
        say(f"error: {_one_line(error)}")
        return getattr(error, "exit_status", 2)


if __name__ == "__main__":
    raise SystemExit(main())
