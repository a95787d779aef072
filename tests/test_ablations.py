"""The plans: every config valid, runs shared, one thing varied at a time."""

from __future__ import annotations

from collections import Counter

import pytest

from replication import __main__ as command_line
from replication.ablations import ABLATIONS, TRAINED, plan
from replication.config import PROFILES, ExperimentConfig, load_profile, profile_plan
from replication.errors import UserError


def configs(profile: str, name: str, **options) -> list[ExperimentConfig]:
    return [run.config for run in plan(profile, [name], **options)]


@pytest.mark.parametrize("variant", ["default", "full"])
@pytest.mark.parametrize("profile", PROFILES)
def test_every_planned_run_is_valid_and_planned_once(profile, variant):
    planned = plan(profile, variant=variant)
    assert {run.ablation for run in planned} == {"full_vs_sparse", *profile_plan(profile)} & set(ABLATIONS)
    assert max(Counter((run.ablation, run.config.canonical) for run in planned).values()) == 1
    for run in planned:
        assert run.config.profile == profile
        assert ExperimentConfig(**run.config.model_dump()) == run.config


def test_one_config_has_one_run_id_and_two_configs_have_two():
    planned = plan("nano") + plan("smoke")
    ids = {run.config.canonical: run.config.run_id for run in planned}
    assert len(set(ids.values())) == len(ids)
    assert len(ids) < len(planned), "ablations share runs"
    headline = {config.run_id for config in configs("nano", "full_vs_sparse")}
    for name in ("token_fraction", "lora_rank", "learning_rate"):
        assert headline & {config.run_id for config in configs("nano", name)}, f"{name} does a headline run over again"


def test_the_headline_compares_all_methods_on_all_tasks_with_all_seeds():
    grid = profile_plan("nano")
    counted = Counter((config.task, config.method) for config in configs("nano", "full_vs_sparse"))
    assert counted == {
        (task, method): 1 if method == "base" else grid["seeds"] for task in grid["tasks"] for method in ("base", *TRAINED)
    }
    assert Counter(
        config.seed for config in configs("nano", "full_vs_sparse", seeds=5) if config.method == "grpo"
    ) == dict.fromkeys(range(5), 2)


@pytest.mark.parametrize("profile", [name for name in PROFILES if "lora_rank" in profile_plan(name)])
def test_the_scale_of_the_adapter_is_the_same_at_every_rank(profile):
    runs = configs(profile, "lora_rank", variant="full")
    adapted = [config for config in runs if config.lora_rank]
    assert len({config.lora_rank for config in adapted}) > 1 or profile == "smoke"
    assert {config.lora_alpha / config.lora_rank for config in adapted} == {2.0}


def test_each_rank_is_tuned_with_the_first_seed_and_run_with_all():
    """At one learning rate for all ranks the ablation would measure learning rates."""
    grid = profile_plan("nano")["lora_rank"]
    for rank in grid["ranks"]:
        for method in TRAINED:
            rates: dict[float, set[int]] = {}
            for config in configs("nano", "lora_rank"):
                if (config.lora_rank, config.method) == (rank, method):
                    rates.setdefault(config.learning_rate, set()).add(config.seed)
            chosen = [rate for rate, seeds in rates.items() if seeds == {0, 1, 2}]
            assert len(chosen) == 1 and all(seeds == {0} for rate, seeds in rates.items() if rate not in chosen)
            default = load_profile("nano", task=grid["task"], method=method)
            tried = grid["grid"] if rank else grid["grid_without_adapter"]
            assert set(rates) == ({default.learning_rate} if rank == default.lora_rank else set(tried))


def test_the_full_plan_tunes_every_rank_with_every_seed_and_fits_two_hours():
    planned = plan("nano", variant="full")
    # 20 s a run on one core (the committed runs took 16) on two cores.
    assert len({run.config.canonical for run in planned}) == 607 and 607 * 20 / 2 < 2 * 3600
    tried: dict[tuple[int, str], dict[float, set[int]]] = {}
    for config in (run.config for run in planned if run.ablation == "lora_rank"):
        tried.setdefault((config.lora_rank, config.method), {}).setdefault(config.learning_rate, set()).add(config.seed)
    assert set(tried) == {(rank, method) for rank in (0, 1, 2, 4, 8, 16, 32) for method in TRAINED}
    for rates in tried.values():
        assert len(rates) >= 3 and set(map(len, rates.values())) == {5}, "a rate is not judged by luckier seeds than another"
    seeds = {(r.config.task, r.config.method, r.config.seed) for r in planned if r.ablation == "full_vs_sparse"}
    assert len(seeds) == 2 * (3 * 10 + 1)
    shares = {r.config.token_share for r in planned if r.ablation == "token_fraction"} - {None}
    assert min(shares) == 0.05 and max(shares) < 1, "full-token GRPO is the end at 100 %"


def test_no_grid_of_the_full_plan_ends_where_the_default_plan_found_its_best():
    grid = profile_plan("nano")
    for rank, chosen in grid["lora_rank"]["chosen"].items():
        rates = grid["full"]["lora_rank"]["grids"][rank]
        assert rates == sorted(rates) and all(rates[0] < rate < rates[-1] for rate in chosen.values())


def test_every_method_is_tuned_on_the_same_grid_and_runs_at_a_rate_from_it():
    grid = profile_plan("nano")
    for task in grid["tasks"]:
        for method in TRAINED:
            runs = [c for c in configs("nano", "learning_rate") if (c.task, c.method) == (task, method)]
            assert [c.learning_rate for c in runs] == grid["learning_rate"]["grid"] and {c.seed for c in runs} == {0}
            assert load_profile("nano", task=task, method=method).learning_rate in grid["learning_rate"]["grid"]


def test_only_the_varied_fields_vary():
    varied = {
        "token_fraction": {"keep_probability", "max_kept_tokens", "cutoff", "selector", "token_share", "denominator"},
        "lora_rank": {"lora_rank", "lora_alpha", "learning_rate"},
        "learning_rate": {"learning_rate"},
    }
    for name, fields in varied.items():
        for config in configs("nano", name):
            default = load_profile("nano", task=config.task, method=config.method, seed=config.seed).model_dump()
            changed = {field for field, value in config.model_dump().items() if value != default[field]}
            assert changed <= fields, f"{name} also changes {changed - fields}"


@pytest.mark.parametrize(
    ("profile", "name"),
    [(profile, name) for profile in PROFILES for name in ABLATIONS if name in {"full_vs_sparse", *profile_plan(profile)}],
)
def test_the_full_plan_holds_the_default_one(profile, name):
    default, full = ({config.canonical for config in configs(profile, name, variant=v)} for v in ("default", "full"))
    assert default <= full
    assert profile != "nano" or default != full


def test_fewer_rates_are_those_nearest_to_the_headlines_own():
    def rates(count: int, method: str) -> list[float]:
        return [c.learning_rate for c in configs("nano", "learning_rate", rates=count) if (c.task, c.method) == (task, method)]

    task, method = "word_problems", "grpo"
    own, grid = load_profile("nano", task=task, method=method).learning_rate, profile_plan("nano")["learning_rate"]["grid"]
    assert rates(1, method) == [own] and rates(9, method) == grid
    assert rates(3, method) == [1.0e-3, 3.0e-3, 1.0e-2]


def test_the_first_look_at_the_small_scale_is_four_runs():
    first = {run.config for run in plan("small", seeds=1, rates=1)}
    assert sorted(config.method for config in first) == ["base", "grpo", "s_grpo", "t_spmo"]
    assert first < {run.config for run in plan("small")}, "what it trains is not trained again"


def test_overrides_reach_every_run():
    planned = plan("smoke", steps=0, learning_rate=0.5, eval_items=3, lora_rank=2, lora_alpha=3)
    assert {(c.steps, c.learning_rate, c.eval_items, c.lora_rank, c.lora_alpha) for c in (run.config for run in planned)} == {
        (0, 0.5, 3, 2, 3)
    }
    assert {run.config.lora_rank for run in plan("smoke", ["lora_rank"], lora_rank=0)} == {0}
    scales = {c.lora_alpha / c.lora_rank for c in configs("nano", "lora_rank", lora_alpha=4) if c.lora_rank}
    assert scales == {0.5}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("nana",), {}, "unknown profile 'nana': choose one of smoke, nano, small, paper"),
        (("nano", ["speed"]), {}, "unknown ablation 'speed': choose one of full_vs_sparse"),
        (("nano",), {"variant": "huge"}, "unknown plan 'huge': choose default or full"),
        (("nano",), {"seeds": 0}, "seeds must be 1 or more, not 0"),
        (("nano",), {"rates": 0}, "rates must be 1 or more, not 0"),
        (("small", ["lora_rank"]), {}, "profile small has no ablation lora_rank: choose one of full_vs_sparse, learning_rate"),
        (("nano",), {"speed": 3}, "speed is not a setting"),
        (("nano",), {"seed": 3}, "seed cannot be set for a whole plan"),
        (("nano",), {"keep_probability": 0.5}, "keep_probability is a setting of s_grpo alone"),
    ],
)
def test_what_no_plan_has_is_said_in_one_line(arguments, options, message):
    with pytest.raises(UserError) as error:
        plan(*arguments, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("setting", ["seeds=3", "seed=1", "profile=smoke", "names=[lora_rank]", "variant=full", "learning_rate=-1"])
def test_a_setting_that_no_plan_has_ends_a_sweep_with_status_2(capsys, setting):
    assert command_line.main(["sweep", "--profile", "smoke", "--list", "--set", setting]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and setting.split("=")[0] in error
