"""A reader's own problems, reward and rule: found or refused in one line, part of the run id, and named in what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from tiny_runs import tiny_config

from replication import train
from replication.__main__ import main
from replication.ablations import PlannedRun, plan
from replication.checks import try_rule
from replication.config import load_profile
from replication.errors import UserError
from replication.groups import reward_under
from replication.report import EXHIBITS
from replication.statistics import answers
from replication.tables import build_tables
from replication.tasks import Problem, get_task

MINE = '''
import hashlib
from replication.algorithms import GRPO, PPO, TSPMO, TokenCredit

def share(text, problem):
    """From 0 to 1 by the text alone."""
    return hashlib.sha256((problem.id + text).encode()).digest()[0] / 255

def two(text, problem):
    return 2

def zero(text, problem):
    return 0

def fails(text, problem):
    raise KeyError(text)

def one_argument(text):
    return 1.0

NUMBER = 7

class FirstHalf:
    def assign(self, completions, rewards, generator=None):
        full = GRPO().assign(completions, rewards)
        keep = full.position < 2
        return TokenCredit(full.completion[keep], full.position[keep], full.advantage[keep], full.weight[keep])

class NoGenerator:
    def assign(self, completions, rewards):
        return TokenCredit.empty()

class Rows:
    def assign(self, completions, rewards, generator=None):
        return [(0, 0, 1.0, 1.0)]

class Beyond:
    def assign(self, completions, rewards, generator=None):
        return TokenCredit.from_arrays([0], [99], [1.0], [1.0])

class FailsOnTies:
    def assign(self, completions, rewards, generator=None):
        if rewards.std() == 0:
            raise ZeroDivisionError("no spread")
        return GRPO().assign(completions, rewards)

class Trie(TSPMO):
    pass

class Judged(PPO):
    pass

class NoTargets:
    needs = ("values",)

    def assign(self, completions, rewards, generator=None, *, values):
        return GRPO().assign(completions, rewards)

class FewTargets(NoTargets):
    def targets(self, completions, rewards, values):
        return [[1.0] for _ in completions]

class NeedsMore:
    def __init__(self, count):
        pass

rule = FirstHalf()

class Nothing:
    def assign(self, completions, rewards, generator=None):
        return TokenCredit.empty()

class NeedsMoods(FirstHalf):
    needs = ("moods",)

def is_trial(completions):
    return max(map(len, completions)) <= 4

class LateNone:
    def assign(self, completions, rewards, generator=None):
        return GRPO().assign(completions, rewards) if is_trial(completions) else None

class LateNan:
    def assign(self, completions, rewards, generator=None):
        full = GRPO().assign(completions, rewards)
        return full if is_trial(completions) else TokenCredit(full.completion, full.position, full.advantage / 0, full.weight)

class LateError:
    def assign(self, completions, rewards, generator=None):
        if not is_trial(completions):
            raise KeyError("late")
        return GRPO().assign(completions, rewards)

class LateTargets(PPO):
    def targets(self, completions, rewards, values):
        return values if is_trial(completions) else values[:1]

class Careless:
    needs = ("entropies",)

    def assign(self, completions, rewards, generator=None, *, entropies):
        credit = GRPO().assign(completions, rewards)
        rewards -= 7.0
        completions[0].append(1)
        entropies[0][0] = 99.0
        return credit

class Careful:
    def assign(self, completions, rewards, generator=None):
        return GRPO().assign(completions, rewards)

def late(text, problem):
    if text and "answer" not in text and not text.strip().isdigit():
        raise KeyError("late")
    return 0.5
'''
LINES = [{"prompt": f"Question: What is {n}+1?\nAnswer:", "answer": n + 1} for n in range(60)]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a module that lies where Python looks for modules, a new one for each test."""
    name = f"mine_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MINE)
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize(
    ("option", "named", "said"),
    [
        ("--reward", "share", "reward 'share' is not of the form package.module:name"),
        ("--reward", "{}.py:share", "is not of the form package.module:name, without .py"),
        ("--reward", "{}:none", "has no none"),
        ("--reward", "nowhere_at_all:share", "cannot import nowhere_at_all (ModuleNotFoundError"),
        ("--reward", "broken_module:share", "cannot import broken_module (ZeroDivisionError: division by zero)"),
        ("--reward", "{}:NUMBER", "is a int, not a function of (text, problem)"),
        ("--reward", "{}:two", "returned 2 for problem"),
        ("--reward", "{}:fails", "fails on the text '' of problem"),
        ("--reward", "{}:fails", ", line 16 of mine_"),
        ("--reward", "{}:one_argument", "fails on the text ''"),
        ("--method", "{}:none", "has no none"),
        ("--method", "{}:share", "has no assign(completions, rewards, generator)"),
        ("--method", "{}:NeedsMore", "NeedsMore() raises TypeError"),
        ("--method", "{}:NoGenerator", "fails on 8 completions of 2 to 4 tokens (TypeError: NoGenerator.assign() takes 3"),
        ("--method", "{}:Rows", "(TypeError: assign returned a list, not a TokenCredit)"),
        ("--method", "{}:Beyond", "(ValueError: the credit names a position outside its completion)"),
        ("--method", "{}:FailsOnTies", "(ZeroDivisionError: no spread, line"),
        ("--method", "{}:NoTargets", "(AttributeError: 'NoTargets' object has no attribute 'targets')"),
        ("--method", "{}:FewTargets", "(ValueError: targets did not return one number for each generated token)"),
        ("--method", "{}:NeedsMoods", "cannot get all that it needs ('Group' object has no attribute 'moods')"),
        ("--data", "nowhere.jsonl", "cannot read the problems from nowhere.jsonl"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(mine, tmp_path, capsys, option, named, said):
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    options = {"--data": "problems.jsonl", "--method": "grpo"} | {option: named.format(mine)}
    words = [word for pair in options.items() for word in pair]
    assert main(["run", "--profile", "smoke", "--task", "jsonl", "--seed", "0", *words, "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rule", ["FirstHalf", "Trie", "Judged"])
def test_a_rule_may_need_whatever_the_methods_of_the_package_need(mine, rule):
    """A subclass of T-SPMO was refused: the group that it was tried on had no replay starts."""
    config = load_profile("smoke", task="jsonl", data="problems.jsonl", method=f"{mine}:{rule}")
    try_rule(config.method, config.build_method(), LINE, config.group_size)


def test_a_run_in_which_no_token_got_credit_says_so(mine, random_base, tmp_path, capsys):
    """Two steps without an update once ended as "done, accuracy 0.000", which reads like training that did not help."""
    small = {"model": random_base, "steps": 1, "max_new_tokens": 4, "eval_items": 2, "test_items": 2, "kl_samples": 1}
    words = ["run", "--profile", "smoke", "--task", "jsonl", "--data", "problems.jsonl", "--seed", "0"]
    words += [word for name, value in small.items() for word in ("--set", f"{name}={value}")]
    tied, differed = "did not change. The completions of each group all had", "did not change. Rewards differed within groups, but"
    for reward, method, said in (("zero", "t_spmo", tied), ("share", f"{mine}:Nothing", differed), ("share", "t_spmo", None)):
        out = str(tmp_path / f"{reward}-{method.partition(':')[2]}")
        # Twice: a finished run says again how it ended.
        for _ in range(2):
            assert main([*words, "--method", method, "--reward", f"{mine}:{reward}", "--out", out]) == 0
            err = capsys.readouterr().err
            assert said in err if said else "no token got credit" not in err


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("LateNone", "assign returned a NoneType, not a TokenCredit"),
        ("LateNan", "the credit's advantage is"),
        ("LateError", "(KeyError: 'late', line "),
        ("LateTargets", "targets did not return one number for each generated token"),
        ("late", "' of problem "),
        ("late", "(KeyError: 'late', line "),
    ],
)
def test_what_fails_only_in_training_is_one_line_that_names_it(mine, random_base, tmp_path, capsys, named, said):
    """A bug that the trial calls do not reach ended in a traceback, or as "diverged … lower the learning rate"."""
    small = {"model": random_base, "steps": 2, "max_new_tokens": 8, "eval_items": 2, "test_items": 2, "warmup_steps": 0}
    option, other = ("--reward", ["--method", "grpo"]) if named == "late" else ("--method", ["--reward", f"{mine}:share"])
    words = ["run", "--profile", "smoke", "--task", "jsonl", "--data", "problems.jsonl", "--seed", "0", *other]
    words += [word for name, value in small.items() for word in ("--set", f"{name}={value}")]
    assert main([*words, option, f"{mine}:{named}", "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(f"error: {option[2:]} {mine}:{named} fails on ") and said in err
    assert not (tmp_path / "run/summary.json").exists()


def test_a_rule_that_changes_its_arguments_changes_no_number_of_the_run(mine, random_base, tmp_path):
    """``rewards -= …`` in a rule moved the reward of metrics.jsonl, and a longer completion the count of generated tokens."""
    found = []
    for name in ("Careful", "Careless"):
        own = {"task": "jsonl", "data": "problems.jsonl", "reward": f"{mine}:share", "method": f"{mine}:{name}"}
        config = tiny_config(random_base, "grpo", **own, selector=None, denominator=None, steps=2)
        train.run(config, tmp_path / name)
        found.append((tmp_path / name / "metrics.jsonl").read_text())
    assert found[0] == found[1] and '"tokens_in_loss"' in found[0]


def test_the_run_id_covers_the_files_of_reward_and_rule_and_not_the_path_of_the_data(mine, tmp_path):
    """An edited rule must not pass for the one whose run is finished, and a module that was imported once stays in memory."""
    def config(**changes):
        values = {"task": "jsonl", "method": f"{mine}:FirstHalf", "reward": f"{mine}:share", "data": "problems.jsonl"}
        return load_profile("smoke", **(values | changes))

    before = config()
    assert before.method.endswith(":FirstHalf") and (before.selector, before.denominator) == ("own", "own")
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_bytes((tmp_path / "problems.jsonl").read_bytes())
    assert config(data=str(elsewhere)).run_id == before.run_id
    assert config(method=f"{mine}:rule").run_id != before.run_id != config(reward=None).run_id
    assert before.load_task().reward("a", LINE) != 0.5
    first = before.run_id
    (tmp_path / f"{mine}.py").write_text(MINE.replace("hashlib.sha256((problem.id + text).encode()).digest()[0] / 255", "0.5"))
    assert before.run_id != first
    assert before.load_task().reward("a", LINE) == 0.5, "the changed file is imported again"


LINE = Problem("x", "p", "a")


def test_a_truncated_completion_earns_nothing_whatever_the_reward_says(mine):
    task = load_profile("smoke", task="jsonl", data="problems.jsonl", reward=f"{mine}:share").load_task()
    assert 0 < reward_under(task, "text", False, task.train[0]) < 1
    assert reward_under(task, "text", True, task.train[0]) == 0.0
    plain = get_task("jsonl", source="problems.jsonl")
    right = f" The answer is {plain.train[0].answer}."
    assert (reward_under(plain, right, False, plain.train[0]), reward_under(plain, right, True, plain.train[0])) == (1.0, 0.0)


def test_own_reward_and_rule_go_from_the_run_to_the_figures(mine, random_base, tmp_path):
    own = {"task": "jsonl", "data": "problems.jsonl", "reward": f"{mine}:share"}
    rule = {"method": f"{mine}:FirstHalf", "selector": None, "denominator": None}
    configs = [tiny_config(random_base, kind, **own) for kind in ("base", "grpo", "t_spmo")]
    configs.append(tiny_config(random_base, "grpo", **own, **rule))
    for config in configs:
        assert train.run(config, tmp_path / "runs" / config.run_id).status == "done"
    planned = [PlannedRun("full_vs_sparse", config) for config in configs]
    tables = build_tables(planned, tmp_path / "runs")
    kept = tables["runs"].set_index("method")["kept_fraction"]
    assert 0 < kept[planned[-1].config.method] < kept["grpo"] == 1.0
    manifest = json.loads((tmp_path / "runs" / planned[-1].config.run_id / "manifest.json").read_text())
    assert manifest["reward"]["name"] == f"{mine}:share" and manifest["reward"]["signature"] == "(text, problem)"
    assert manifest["rule"]["file"] == str(tmp_path / f"{mine}.py") and len(manifest["rule"]["sha256"]) == 64
    items = tables["items"]
    assert items["correct"].isna().all() and items["reward"].between(0, 1).all() and items["reward"].nunique() > 4
    test = items[items["split"] == "test"].groupby("run_id")["reward"].mean()
    runs = tables["runs"].set_index("run_id")["accuracy"]
    assert test.to_dict() == pytest.approx(runs.to_dict(), abs=1e-5)
    for name in ("full_vs_sparse", "learning_curves", "cost_to_reach"):
        shown = EXHIBITS[name].show(tables, "smoke")
        texts = [text.get_text() for text in shown.figure.findobj(Text)]
        assert not any("accuracy" in text.lower() for text in [*texts, *shown.sentences, shown.question, shown.html("x.png")])
        assert any(text.startswith("FirstHalf") for text in texts) and any("reward" in text for text in texts)
        assert f"{mine}:FirstHalf" in set(shown.table["method"])
    headline = EXHIBITS["full_vs_sparse"].show(tables, "smoke")
    assert "Mean test reward over" in headline.sentences[0] and "your problems" in headline.sentences[0]


def test_right_answers_win_over_rewards_where_both_are_there():
    items = pd.DataFrame({"run_id": "a", "item_id": list("xyz"), "correct": [1.0, 0.0, None], "reward": [0.2, 0.9, 0.25]})
    runs = pd.DataFrame({"run_id": ["a"], "seed": [0], "accuracy": [1.25 / 3]})
    assert answers({"items": items}, runs).to_numpy().tolist() == [[1.0, 0.0, 0.25]]
    with pytest.raises(UserError, match="neither correct nor reward"):
        answers({"items": items.drop(columns="reward")}, runs)


def test_a_plan_on_own_problems_has_its_task_and_rule_in_the_headline(mine):
    planned = plan("smoke", data="problems.jsonl", methods=[f"{mine}:rule"], reward=f"{mine}:share")
    assert {run.config.task for run in planned} == {"jsonl"}
    assert {run.ablation for run in planned if run.config.method == f"{mine}:rule"} == {"full_vs_sparse"}
    assert {run.config.reward for run in planned} == {f"{mine}:share"}
    assert {run.config.task for run in plan("smoke", task="multiplication")} == {"multiplication"}


def test_a_sweep_over_own_problems_lists_commands_that_make_the_same_runs(mine, capsys):
    words = ["--profile", "smoke", "--data", "problems.jsonl", "--reward", f"{mine}:share", "--method", f"{mine}:rule"]
    assert main(["sweep", *words, "--ablation", "full_vs_sparse", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all("--task jsonl" in line and "data=problems.jsonl" in line for line in lines)
    assert sum(f"--method {mine}:rule" in line for line in lines) == 1


def test_a_rule_sees_the_rewards_as_they_are(mine):
    rewards = torch.tensor([0.0, 0.25, 0.5, 1.0])
    credit = load_profile("smoke", method=f"{mine}:rule", task="multiplication").build_method().assign([[1, 2, 3]] * 4, rewards)
    assert sorted(set(credit.position.tolist())) == [0, 1]
