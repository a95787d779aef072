"""The plans: every config valid, runs shared, one thing varied at a time."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from replication import __main__ as command_line
from replication.ablations import ABLATIONS, NEW_SEED, TRAINED, TUNING_SEED, plan
from replication.config import ExperimentConfig, load_profile, profile_plan
from replication.errors import UserError
from replication.names import PROFILES


def configs(profile: str, name: str, **options) -> list[ExperimentConfig]:
    return [run.config for run in plan(profile, [name], **options)]


@pytest.mark.parametrize("variant", ["default", "full"])
@pytest.mark.parametrize("profile", PROFILES)
def test_every_planned_run_is_valid_and_planned_once(profile, variant):
    planned = plan(profile, variant=variant)
    section = profile_plan(profile)
    own = {*section, *(section.get("full", {}) if variant == "full" else {})}
    assert {run.ablation for run in planned} == {"full_vs_sparse", *own} & set(ABLATIONS)
    assert max(Counter((run.ablation, run.config.canonical) for run in planned).values()) == 1
    for run in planned:
        assert run.config.profile == profile
        assert ExperimentConfig(**run.config.model_dump()) == run.config


def test_one_config_has_one_run_id_and_two_configs_have_two():
    planned = plan("nano", variant="full") + plan("smoke")
    ids = {run.config.canonical: run.config.run_id for run in planned}
    assert len(set(ids.values())) == len(ids)
    assert len(ids) < len(planned), "ablations share runs"
    headline = {config.run_id for config in configs("nano", "full_vs_sparse")}
    for name in ("token_fraction", "lora_rank", "regimes"):
        assert headline & {config.run_id for config in configs("nano", name)}, f"{name} does a headline run over again"


def test_the_headline_compares_all_methods_in_all_settings_with_all_seeds():
    section = profile_plan("nano")
    for variant, grid in (("default", section), ("full", section["full"])):
        runs = [config for config in configs("nano", "full_vs_sparse", variant=variant) if config.method in ("base", *TRAINED)]
        counted = Counter((config.task, config.asides, config.method) for config in runs)
        assert counted == {
            (setting["task"], setting.get("asides"), method): 1 if method == "base" else grid["seeds"]
            for setting in grid["settings"]
            for method in ("base", *TRAINED)
        }
    assert {setting["asides"] for setting in section["full"]["settings"] if "asides" in setting} == {"none", "before", "after"}
    assert Counter(
        config.seed for config in configs("nano", "full_vs_sparse", seeds=5) if config.method == "grpo"
    ) == dict.fromkeys(range(5), 2)


def test_the_headline_comes_first():
    """A sweep follows the order of the plan, so one that is cut short has what the claims are judged on."""
    for profile in PROFILES:
        names = [run.ablation for run in plan(profile)]
        assert names == sorted(names, key=ABLATIONS.index) and names[0] == "full_vs_sparse"


@pytest.mark.parametrize("profile", [name for name in PROFILES if "lora_rank" in profile_plan(name)])
def test_the_scale_of_the_adapter_is_the_same_at_every_rank(profile):
    runs = configs(profile, "lora_rank", variant="full")
    adapted = [config for config in runs if config.lora_rank]
    assert len({config.lora_rank for config in adapted}) > 1 or profile == "smoke"
    assert {config.lora_alpha / config.lora_rank for config in adapted} == {2.0}


@pytest.mark.parametrize("variant", ["default", "full"])
def test_each_rank_is_run_at_each_rate_with_the_same_seeds(variant):
    """At one learning rate for all ranks the ablation would measure learning rates; no rate is judged by luckier seeds."""
    section = profile_plan("nano")
    grid = section["lora_rank"] | (section["full"]["lora_rank"] if variant == "full" else {})
    tried: dict[tuple[int, str], dict[float, set[int]]] = {}
    for config in configs("nano", "lora_rank", variant=variant):
        tried.setdefault((config.lora_rank, config.method), {}).setdefault(config.learning_rate, set()).add(config.seed)
    assert set(tried) == {(rank, method) for rank in grid["ranks"] for method in TRAINED}
    for (rank, _), rates in tried.items():
        assert set(rates) == set(grid["grid"] if rank else grid["grid_without_adapter"])
        assert all(seeds == set(range(grid["seeds"])) for seeds in rates.values())


@pytest.mark.parametrize("profile", [name for name in PROFILES if "lora_rank" in profile_plan(name)])
def test_at_the_profiles_own_rank_and_rate_the_headline_run_stands(profile):
    """The headline's rank had one rate where the others had the best of three."""
    headline = set(configs(profile, "full_vs_sparse", variant="full"))
    for config in configs(profile, "lora_rank", variant="full"):
        own = load_profile(profile, method=config.method, task=config.task, asides=config.asides)
        same = (config.lora_rank, config.learning_rate) == (own.lora_rank, own.learning_rate)
        assert (config in headline) == same


@pytest.mark.parametrize(("variant", "size"), [("default", (44, 6_300)), ("full", (514, 81_450))])
def test_the_plans_are_known_in_size(variant, size):
    """A change of the plan is a decision: it costs hours, and the committed tables come from the full one."""
    runs = {run.config for run in plan("nano", variant=variant)}
    assert (len(runs), sum(config.steps for config in runs)) == size


@pytest.mark.parametrize("variant", ["default", "full"])
def test_learning_rates_are_chosen_with_the_same_grid_for_every_method_by_seeds_that_nothing_reports(variant):
    section = profile_plan("nano")
    grid = section["learning_rate"] | (section["full"]["learning_rate"] if variant == "full" else {})
    runs = configs("nano", "learning_rate", variant=variant)
    for setting in grid["settings"]:
        for method in TRAINED:
            found = Counter(
                c.learning_rate for c in runs if (c.task, c.asides, c.method) == (setting["task"], setting.get("asides"), method)
            )
            assert found == dict.fromkeys(grid["grids"][setting["task"]], grid["seeds"])
    reported = {run.config.seed for run in plan("nano", ["full_vs_sparse", "lora_rank", "replay"], variant="full")}
    assert not reported & {config.seed for config in runs}


def test_a_neighbouring_setting_tries_the_methods_own_rate_and_the_two_beside_it():
    grid = profile_plan("nano")["full"]["learning_rate"]
    runs = configs("nano", "learning_rate", variant="full")
    for setting in grid["neighbours"]:
        for method in TRAINED:
            rates = [c.learning_rate for c in runs if (c.asides, c.method) == (setting["asides"], method)]
            own, tried = load_profile("nano", method=method, **setting).learning_rate, grid["grids"][setting["task"]]
            nearest = sorted(tried, key=lambda rate: max(rate / own, own / rate))[:3]
            assert rates == sorted(nearest)


@pytest.mark.parametrize("setting", profile_plan("nano")["full"]["settings"], ids=str)
@pytest.mark.parametrize("method", TRAINED)
def test_every_method_runs_at_a_rate_that_was_tried(setting, method):
    grid = profile_plan("nano")["full"]["learning_rate"]["grids"][setting["task"]]
    assert load_profile("nano", method=method, **setting).learning_rate in grid


def test_the_screening_of_regimes_is_every_cell_at_every_rate_with_the_tuning_seed():
    grid = profile_plan("nano")["full"]["regimes"]
    runs = [c for c in configs("nano", "regimes", variant="full") if c.method == "grpo" and c.seed == TUNING_SEED]
    axes = grid["screen"]["cells"]
    cells = [(c.prompts_per_step, c.group_size, c.eps, c.train_items) for c in runs]
    counted = Counter(cells)
    assert len(counted) == math.prod(map(len, axes.values())) and set(counted.values()) == {len(grid["screen"]["rates"])}


def test_a_cell_is_confirmed_with_new_seeds_for_every_method_at_a_rate_that_the_screening_tried():
    grid = profile_plan("nano")["full"]["regimes"]
    for confirmed in grid["confirm"]:
        runs = [
            c for c in configs("nano", "regimes", variant="full")
            if c.seed >= NEW_SEED and all(getattr(c, name) == value for name, value in confirmed["cell"].items())
        ]  # fmt: skip
        assert Counter(c.method for c in runs) == dict.fromkeys(TRAINED, grid["new_seeds"])
        assert {c.learning_rate for c in runs} <= set(grid["screen"]["rates"])


def test_few_training_items_are_seen_often_and_evaluated_on_the_way():
    for few in profile_plan("nano")["full"]["regimes"]["overfit"]:
        runs = [
            c for c in configs("nano", "regimes", variant="full") if (c.train_items, c.steps) == (few["train_items"], few["steps"])
        ]
        assert Counter(c.method for c in runs) == dict.fromkeys(TRAINED, few["seeds"])
        assert all(c.extra_splits == "always" and c.steps * c.prompts_per_step > 3 * c.train_items for c in runs)


def test_replays_are_compared_with_none_on_the_same_seeds():
    runs = configs("nano", "replay", variant="full")
    with_replays, without = ({c.seed for c in runs if bool(c.replay_successes) is on} for on in (True, False))
    assert with_replays == without == set(range(profile_plan("nano")["full"]["replay"]["seeds"]))


def test_only_the_varied_fields_vary():
    varied: dict[str, set[str]] = {
        "full_vs_sparse": set(),
        "token_fraction": {"keep_probability", "max_kept_tokens", "cutoff", "selector", "token_share", "learning_rate"},
        "lora_rank": {"lora_rank", "lora_alpha", "learning_rate"},
        "learning_rate": {"learning_rate"},
        "regimes": {"prompts_per_step", "group_size", "eps", "train_items", "steps", "learning_rate"},
        "replay": {"replay_successes", "replay_failures"},
    }
    for name, fields in varied.items():
        for config in configs("nano", name, variant="full"):
            default = load_profile(
                "nano", task=config.task, asides=config.asides, method=config.method, seed=config.seed
            ).model_dump()
            evaluated = {"extra_splits"}  # what is evaluated besides changes nothing that is trained
            changed = {field for field, value in config.model_dump().items() if value != default[field]} - evaluated
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
    def rates(count: int) -> list[float]:
        runs = configs("nano", "learning_rate", variant="full", rates=count)
        return sorted({c.learning_rate for c in runs if (c.task, c.asides, c.method) == ("word_problems", "after", "grpo")})

    grid = profile_plan("nano")["full"]["learning_rate"]["grids"]["word_problems"]
    own = load_profile("nano", task="word_problems", method="grpo").learning_rate
    assert rates(1) == [min(grid, key=lambda rate: max(rate / own, own / rate))] and rates(9) == grid
    assert len(rates(3)) == 3 and max(rates(3)) / min(rates(3)) < 5, "three neighbours on a fine grid"


def test_the_first_look_at_the_small_scale_is_each_method_once_for_the_headline_and_once_for_its_rate():
    first = plan("small", seeds=1, rates=1)
    assert Counter((run.ablation, run.config.method) for run in first) == {
        ("full_vs_sparse", "base"): 1,
        **{(name, method): 1 for name in ("full_vs_sparse", "learning_rate") for method in TRAINED},
    }
    assert {run.config for run in first} < {run.config for run in plan("small")}, "what it trains is not trained again"


def test_overrides_reach_every_run():
    planned = plan("smoke", steps=0, learning_rate=0.5, eval_items=3, lora_rank=2, lora_alpha=3)
    assert {(c.steps, c.learning_rate, c.eval_items, c.lora_rank, c.lora_alpha) for c in (run.config for run in planned)} == {
        (0, 0.5, 3, 2, 3)
    }
    assert {(run.config.method == "base", run.config.steps) for run in plan("smoke", steps=3)} == {(True, 0), (False, 3)}
    assert {run.config.lora_rank for run in plan("smoke", ["lora_rank"], lora_rank=0)} == {0}
    scales = {c.lora_alpha / c.lora_rank for c in configs("nano", "lora_rank", lora_alpha=4) if c.lora_rank}
    assert scales == {0.5}


def test_a_learning_rate_that_is_set_is_not_tuned():
    """The grid collapsed to one rate: a run for each method that chose nothing, without which results could not be published."""
    planned = plan("small", learning_rate=0.5)
    assert {run.ablation for run in planned} == {"full_vs_sparse"}
    assert {run.config.learning_rate for run in planned} == {0.5}
    with pytest.raises(UserError, match="learning_rate is set"):
        plan("small", ["learning_rate"], learning_rate=0.5)


def test_a_setting_of_one_method_reaches_the_runs_of_that_method_alone():
    """It was refused as soon as the plan came to another method, so S-GRPO's rule could not be fitted to one's own answers."""
    planned = [run.config for run in plan("small", cutoff=5, replay_successes=2)]
    assert {(c.method, c.cutoff) for c in planned if c.cutoff is not None} == {("s_grpo", 5)}
    assert {c.replay_successes for c in planned if c.method == "t_spmo"} == {2}
    assert {c.method for c in planned} == {"base", "grpo", "s_grpo", "t_spmo"}


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
        (("small",), {"gae_lambda": 0.9}, "gae_lambda is a setting of ppo alone, which this plan does not train"),
        (("nano",), {"keep_probability": 2}, "keep_probability"),
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
