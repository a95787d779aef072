"""What each command of the command line does. Rooms that import pandas or matplotlib are imported where a command needs them."""

from __future__ import annotations

import argparse
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from replication.ablations import PlannedRun, plan
from replication.config import ExperimentConfig, load_profile, parse_settings, profile_plan, run_command
from replication.console import say
from replication.errors import Stopped, UserError, first_line
from replication.names import CLAIMS, METHOD_LABELS, RESULTS
from replication.runs import explained, manifest, mark_failed, now, peak_memory, read_json, read_summary

if TYPE_CHECKING:
    from replication.statistics import Claim

_OWN = ("profile", "task", "method", "seed")  # options of ``run`` that --set may not name


class _PlanOptions(BaseModel):
    """The options that say which runs a plan has, as a manifest notes them, and their defaults. Older manifests note fewer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    plan: str = "default"
    seeds: int | None = None
    set: list[str] = []
    svamp: str | None = None
    task: str | None = None
    data: str | None = None
    reward: str | None = None
    method: list[str] = []
    rates: int | None = None


_DEFAULT_PLAN = _PlanOptions().model_dump()


def run(options: argparse.Namespace) -> int:
    overrides = _overrides(options, _OWN, "use the option --{name}")
    config = load_profile(options.profile, task=options.task, method=options.method, seed=options.seed, **overrides)
    if read_summary(options.out) is None:
        from replication.sweep import check_needs

        check_needs([config])
    from replication import train

    try:
        summary = train.run(config, options.out)
    except (UserError, Stopped):
        raise
    except Exception as error:
        mark_failed(options.out, first_line(error, with_type=True))
        traceback.print_exc()
        return 1
    measure = "accuracy" if config.reward is None else "mean reward"
    accuracy = "" if summary.accuracy is None else f", {measure} {summary.accuracy:.3f} on {summary.n_items} test items"
    print(f"{summary.run_id} {summary.status}{accuracy}" + (f": {summary.reason}" if summary.reason else ""))
    if summary.steps_done and summary.tokens_in_loss == 0:
        tied = "The completions of each group all had the same reward, which gives no credit"
        why = tied if summary.kept_fraction is None else "Rewards differed within groups, but the rule gave no credit"
        say(f"no token got credit, so the model did not change. {why}: see docs/extending.md")
    return 0 if summary.status == "done" else 1


def _overrides(options: argparse.Namespace, refused: Sequence[str], advice: str) -> dict[str, Any]:
    """The config fields that --set, --svamp, --data and --reward give; ``refused`` are those that --set may not name."""
    values = parse_settings(options.set)
    for name in refused:
        if name in values:
            raise UserError(f"--set {name}: {advice.format(name=name)}")
    files = {"svamp_source": "svamp", "data": "data", "reward": "reward"}
    given = {field: getattr(options, option, None) for field, option in files.items()}
    return values | {field: value for field, value in given.items() if value is not None}


def _results(options: argparse.Namespace) -> Path:
    profile_plan(options.profile)  # an unknown profile is named before anything else
    return options.out or Path("results/local") / options.profile


def _check_writable(out: Path) -> None:
    """Raise UserError now, not after minutes of measuring, if nothing can be written into ``out``."""
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()


def _plan(options: argparse.Namespace, names: Sequence[str] | None = None) -> list[PlannedRun]:
    refused = (*_OWN, "names", "variant", "seeds", "rates", "methods")
    overrides = _overrides(options, refused, "a plan chooses its runs by the options of sweep (see sweep --help)")
    how = {"variant": options.plan, "seeds": options.seeds, "rates": options.rates, "task": options.task, "methods": options.method}
    return plan(options.profile, names, **how, **overrides)


def sweep(options: argparse.Namespace) -> int:
    if options.engine == "local" and options.address is not None:
        raise UserError("--address is that of a Ray cluster: give --engine ray too")
    out = _results(options)
    planned = _plan(options, options.ablation)
    if options.list:
        return _list_runs(list(dict.fromkeys(run.config for run in planned)), out / "runs")
    from replication.report import rebuild_tables
    from replication.sweep import run_plan

    result = run_plan(planned, out / "runs", workers=options.workers, engine=options.engine, address=options.address or "auto")
    for run_id in result.missing:  # before the tables, which a damaged file of another run can stop
        say(f"missing: {out / 'runs' / run_id}: {result.failed.get(run_id, 'not finished')}")
    # The tables cover the whole plan: a run that this sweep left out has a row there, as pending.
    noted = {name: getattr(options, name) for name in _DEFAULT_PLAN}
    rebuild_tables(_plan(options), out, {"profile": options.profile, "plan": noted})
    finished = f"{len(result.planned) - len(result.missing)} of {len(result.planned)} runs finished"
    diverged = f", {len(result.diverged)} of them diverged" if result.diverged else ""
    say(f"{finished}{diverged}; tables in {out}")
    return 0 if result.ok else 1


def _list_runs(configs: Sequence[ExperimentConfig], runs_dir: Path) -> int:
    """Print the command of each run. One whose folder is not known is a comment to a shell, so that no two write into one."""
    unknown = []
    for config in configs:
        try:
            print(run_command(config, runs_dir / config.run_id))
        except UserError as error:  # the data or the base, which a run id covers, are not here
            unknown.append(str(error))
            print(f"# {run_command(config, runs_dir / 'RUN_ID')}")
    say(f"{len(configs)} runs, {sum(config.steps for config in configs)} steps")
    if unknown:
        reasons = "; ".join(dict.fromkeys(unknown))
        raise UserError(f"{len(unknown)} of these runs have no run id, which names their folder, and cannot be started: {reasons}")
    return 0


def report(options: argparse.Namespace) -> int:
    out = _results(options)
    from replication.report import build, rebuild_tables

    if (out / "runs").is_dir():
        noted = _noted_plan(out / "manifest.json")
        planned = _plan(argparse.Namespace(profile=options.profile, **noted))
        rebuild_tables(planned, out, {"profile": options.profile, "plan": noted})
    print(build(out, options.profile))
    return 0


def _noted_plan(path: Path) -> dict[str, Any]:
    """The plan that the tables beside a manifest were made for."""
    found = read_json(path, "a manifest") if path.exists() else {}
    try:
        return _PlanOptions.model_validate(found.get("plan") or {}).model_dump()
    except (AttributeError, ValidationError):  # not an object
        raise UserError(f"{path} does not say of which plan the tables are (edited?): `make all` notes it anew") from None


def diagnose(options: argparse.Namespace) -> int:
    out = _results(options)
    from replication.measure import diagnose as measure
    from replication.tables import write_tables

    _check_writable(out)
    size = {"problems": options.problems, "redraws": options.redraws}
    refused = ("profile", "task", "method", *size)
    overrides = _overrides(options, refused, "diagnose measures every method and takes the rest by its options (see --help)")
    tables, took = measure(options.profile, task=options.task, **size, **overrides)
    about = {**manifest(), **took, **peak_memory(), "made": now(), "tables": [f"{name}.csv" for name in tables]}
    write_tables(tables, out, notes={"diagnostics": about})
    say(f"{out / 'credit.csv'} and worked_example.csv, {took['seconds']} s")
    return 0


def prompts(options: argparse.Namespace) -> int:
    out = _results(options)
    advice = "every task of the profile is measured with the base under every template"
    overrides = _overrides(options, (*_OWN, "prompt_template"), advice)
    from replication.measure import measure_prompts
    from replication.sweep import check_needs
    from replication.tables import PROMPT_SHARES

    _check_writable(out)
    # Raise for what the later runs lack now, not after the base was measured.
    planned = _plan(argparse.Namespace(**_DEFAULT_PLAN | vars(options)))
    check_needs([run.config for run in planned], out / "runs")
    table = measure_prompts(options.profile, out, task=options.task, **overrides)
    shown = table[["task", "template", "chosen", "items", *PROMPT_SHARES, "reason"]].astype({"items": "Int64"})
    print(shown.to_string(index=False, na_rep="", float_format="{:.3f}".format))
    say(f"{out / 'prompts.csv'}")
    return 0


def figures(options: argparse.Namespace) -> int:
    out = _results(options)
    from replication.report import EXHIBITS, save_figures
    from replication.tables import read_tables

    tables = read_tables(out)
    for path in save_figures((exhibit.show(tables, options.profile) for exhibit in EXHIBITS.values()), out / "figures"):
        print(path)
    return 0


def notebooks(options: argparse.Namespace) -> int:
    out = _results(options)
    from replication.notebooks import notebook_names, parameters, run_all

    given = parse_settings(options.set)
    for name, option in (("profile", "--profile"), ("results_dir", "--out")):
        if name in given:  # two values that disagree would put one profile's notebook into another's folder
            raise UserError(f"--set {name}: use the option {option}")
    names = options.names or notebook_names()
    if not names:
        raise UserError("the notebooks are in the repository, not in an installed package: run this in a clone")
    if options.no_train and any("train" in parameters(name) for name in names):
        given["train"] = False
    for page in run_all(options.profile, out, names, given=given):
        print(page)
    return 0


def verify(options: argparse.Namespace) -> int:
    out = _results(options)
    from replication.statistics import compare_tables
    from replication.tables import read_tables

    compared = compare_tables(read_tables(out), read_tables(options.committed or Path("results") / options.profile))
    print(compared.to_string(index=False, na_rep=""))
    counts = compared["agreement"].value_counts().to_dict()
    print(", ".join(f"{counts.get(word, 0)} {word}" for word in ("agree", "disagree", "missing", "not compared")))
    both = compared[compared["agreement"].isin(["agree", "disagree"])]
    if changed := both.loc[both["verdict_mine"] != both["verdict_committed"], "claim"].tolist():
        print(f"another verdict than the committed one (intervals of fewer seeds decide less): {', '.join(changed)}")
    if missing := compared.loc[compared["agreement"] == "missing", "claim"].tolist():
        print(f"your tables have no runs for {', '.join(missing)}: they are in PLAN=full, or have failed")
    return 1 if counts.get("disagree") or not counts.get("agree") else 0


def check(options: argparse.Namespace) -> int:
    """Run what one claim rests on with a few seeds, and show its interval beside the committed one."""
    import pandas as pd

    from replication.statistics import load_claims, verdicts
    from replication.sweep import run_plan
    from replication.tables import build_tables, read_tables

    claims = load_claims(CLAIMS)
    claim = next((claim for claim in claims if claim.id.lower() == options.claim.lower()), None)
    if claim is None:
        raise UserError(f"unknown claim {options.claim!r}: choose one of {', '.join(claim.id for claim in claims)}")
    planned = _runs_of(claim, options)
    # Read before the training, so that damaged tables stop it.
    committed = read_tables(RESULTS / claim.scale) if (RESULTS / claim.scale).is_dir() else {}
    if not committed:
        say(f"there are no committed tables in {RESULTS / claim.scale}: nothing to compare with")
    runs = (options.out or Path("results/local") / claim.scale) / "runs"
    result = run_plan(planned, runs, workers=options.workers)
    for run_id, reason in result.failed.items():
        say(f"failed: {runs / run_id}: {reason}")
    mine = build_tables(planned, runs)
    if claim.tuned and "runs" in committed:  # the tuning of the rates is not checked again
        rates = committed["runs"][committed["runs"]["ablation"] == "learning_rate"]
        mine["runs"] = pd.concat([mine["runs"], rates], ignore_index=True)
    # Both are judged anew: the committed verdicts may be older than the claim.
    rows = {"here": verdicts([claim], mine), "committed": verdicts([claim], committed)}
    shown = pd.concat(rows, names=["from"]).reset_index("from")
    print(f"{claim.id}: {claim.text}\nrule: {claim.rule_text}")
    counts = {name: shown[name].astype("string").fillna("") for name in ("seeds", "items")}
    columns = ["from", "value", "low", "high", "unit", "seeds", "items", "verdict"]
    print(shown.assign(**counts)[columns].to_string(index=False, na_rep="", float_format="{:.2f}".format))
    for name, note in zip(rows, shown["note"], strict=True):
        if note:
            print(f"{name}: {note}")
    if claim.tuned:
        print("here: the runs that tuned the learning rates are those of the committed tables")
    here, there = shown["seeds"]
    if shown["seeds"].notna().all() and here < there:
        print(f"{here} seeds decide less than the committed {there}: SEEDS={there} repeats all of them")
    return 0 if result.ok else 1


def _runs_of(claim: Claim, options: argparse.Namespace) -> list[PlannedRun]:
    """The runs of the full plan that a claim rests on, with the first seeds alone."""
    full = _DEFAULT_PLAN | vars(options) | {"profile": claim.scale, "plan": "full"}
    planned = [run for run in _plan(argparse.Namespace(**full), [claim.ablation]) if claim.needs(run.config)]
    if lacking := set(claim.methods) - {run.config.method for run in planned}:
        names = ", ".join(METHOD_LABELS[name] for name in claim.methods if name in lacking)
        raise UserError(f"nothing to check: {claim.id} rests on runs of {names} that the full plan of {claim.scale} does not have")
    # Not every ablation takes its seeds from --seeds.
    seeds = sorted({run.config.seed for run in planned if run.config.method != "base"})[: options.seeds]
    return [run for run in planned if run.config.method == "base" or run.config.seed in seeds]


def publish(options: argparse.Namespace) -> int:
    from replication.report import publish as copy

    for path in copy(options.profile, _results(options), options.to or Path("results") / options.profile):
        print(path)
    return 0


def base(options: argparse.Namespace) -> int:
    from replication.nano import build

    print(build(options.out, steps=options.steps, threads=options.threads)["comparison"])
    return 0
