"""The command line behind the Makefile: python -m replication COMMAND.

Exit status: 0 done; 1 a run failed or diverged, or is missing after a sweep; 2 bad usage or bad input, with one line on stderr;
129, 130 or 143 stopped by a signal with the work saved. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from replication import signals
from replication.console import lenient_streams, say
from replication.errors import Stopped, UserError

PROFILE_HELP = "smoke (CPU, minutes, no evidence), nano (CPU, the lab), small or paper (GPU)"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    about = "Token-efficient RL for language models: train runs, sweep over plans, report."
    parser = _Parser(prog="python -m replication", description=about, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(signals=name in ("run", "sweep", "notebooks"))
        return added

    def results(added: argparse.ArgumentParser) -> None:
        added.add_argument("--profile", default="nano", help=f"{PROFILE_HELP} (default: nano)")
        added.add_argument("--out", type=Path, metavar="DIR", help="results folder (default: results/local/PROFILE)")

    def plan(added: argparse.ArgumentParser) -> None:
        added.add_argument("--plan", default="default", help="default, or full: more seeds and finer grids")
        added.add_argument("--seeds", type=int, metavar="N", help="seeds of the headline comparison (default: the profile's)")
        about = "add your own method to the headline comparison"
        added.add_argument("--method", action="append", default=[], metavar="M", help=about)
        added.add_argument("--rates", type=int, metavar="N", help="learning rates tried per method (default: the profile's)")
        settings(added)
        task(added)

    def task(added: argparse.ArgumentParser) -> None:
        added.add_argument("--task", help="only this task, in place of the profile's (default with --data: jsonl)")

    def settings(added: argparse.ArgumentParser) -> None:
        added.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="another value of a config field")
        added.add_argument("--svamp", metavar="FILE", help="the official SVAMP.json (default: download from the Hub)")
        added.add_argument("--data", metavar="FILE", help="your problems for task jsonl, one in each line (docs/extending.md)")
        added.add_argument("--reward", metavar="MODULE:FUNCTION", help="your reward of (text, problem), from 0 to 1")

    run = command("run", "train and evaluate one run in this process, or resume it; a finished one is left alone")
    run.add_argument("--profile", required=True, help=PROFILE_HELP)
    run.add_argument("--task", required=True, help="word_problems, multiplication, svamp or jsonl")
    run.add_argument("--method", required=True, help="base, grpo, s_grpo, t_spmo, ppo, or your own rule as module:object")
    run.add_argument("--seed", type=int, required=True, help="random seed of the run, 0 or more")
    settings(run)
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="the run's own folder")

    sweep = command("sweep", "run the missing runs of a plan in worker processes, then write the tables")
    results(sweep)
    sweep.add_argument("--ablation", action="append", metavar="A", help="only this ablation (may be repeated; default: all)")
    sweep.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core, or per GPU)")
    sweep.add_argument("--engine", default="local", choices=("local", "ray"), help="processes of this machine, or a Ray cluster")
    sweep.add_argument("--address", metavar="HOST:PORT", help="of the Ray cluster (default: auto, the one this machine belongs to)")
    sweep.add_argument("--list", action="store_true", help="print the planned runs and their commands, and run nothing")
    plan(sweep)

    report = command("report", "tables from the run directories if there are any, verdicts, then report.html")
    results(report)

    about = "measure how much gradient and credit falls on decisive tokens; writes credit.csv and worked_example.csv (3 minutes)"
    diagnose = command("diagnose", about)
    results(diagnose)
    diagnose.add_argument(
        "--task", choices=("word_problems", "multiplication"), help="this alone (default: both, word problems in every condition)"
    )
    diagnose.add_argument("--problems", type=int, default=32, metavar="N", help="validation problems (default: 32)")
    diagnose.add_argument("--redraws", type=int, default=4, metavar="K", help="groups sampled for each problem (default: 4)")
    diagnose.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="another value of a config field")

    prompts = command("prompts", "measure the base under each prompt template on the validation split; writes prompts.csv")
    results(prompts)
    settings(prompts)
    task(prompts)

    figures = command("figures", "draw every figure from the tables")
    results(figures)

    notebooks = command("notebooks", "run the notebooks by papermill and write them as pages")
    results(notebooks)
    notebooks.add_argument("names", nargs="*", metavar="NAME", help="notebooks without their suffix (default: all)")
    notebooks.add_argument("--no-train", action="store_true", help="train no run of the plan (01 to 04 still train short ones)")
    notebooks.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another value of a notebook parameter")

    verify = command("verify", "compare your tables with the committed ones, claim by claim")
    results(verify)
    verify.add_argument("--committed", type=Path, metavar="DIR", help="the other tables (default: results/PROFILE)")

    check = command("check", "train the runs of one claim with a few seeds and print its interval beside the committed one")
    check.add_argument("claim", help="its id in data/claims.yaml, for instance N4")
    check.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds of each method (default: 3)")
    check.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core, or per GPU)")
    check.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default: results/local/PROFILE)")
    settings(check)

    publish = command("publish", "copy tables, figures and pages of your results over the committed ones")
    results(publish)
    publish.add_argument("--to", type=Path, metavar="DIR", help="where to (default: results/PROFILE)")

    base = command("base", "pre-train the nano base into a new folder and compare it with the shipped one")
    base.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
    base.add_argument("--steps", type=int, metavar="N", help="fewer optimizer steps than the shipped base had")
    base.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads; the weights' bits depend on them")

    return parser


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    with lenient_streams() as out:
        status = _status(arguments)
    if out.lost is not None:
        say(f"error: stdout: {out.lost.strerror}: not all of the output was written")
        return status or 1
    return status


def _status(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        with signals.handled() if options.signals else contextlib.nullcontext():
            from replication import commands

            return getattr(commands, options.command)(options)
    except Stopped as stopped:
        say(f"stopped by {signal.Signals(stopped.signum).name}, the work so far is saved: start again to go on")
        return 128 + stopped.signum
    except KeyboardInterrupt:
        say("stopped")
        return 128 + signal.SIGINT
    except (UserError, OSError) as error:
        say(f"error: {_one_line(error)}")
        return getattr(error, "exit_status", 2)


if __name__ == "__main__":
    raise SystemExit(main())
