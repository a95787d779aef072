"""The config: what it refuses and how it says so, the run id, profiles, and a command line that makes the very same run."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_runs import HELPERS, TRAINED, make_base, tiny_config

from replication import base_files, tasks, train
from replication.__main__ import main
from replication.ablations import plan
from replication.config import ExperimentConfig, experiment, load_profile, profile_plan, run_command
from replication.errors import UserError
from replication.names import METHODS, NANO_BASE, PROFILES, ROOT, TASKS

#: Another value of every field, for a config of S-GRPO, or of another method where S-GRPO has no such field.
OTHER_VALUES: dict[str, dict[str, Any]] = {
    "profile": {"profile": "nano"},
    "task": {"task": "word_problems"},
    "asides": {"task": "word_problems", "asides": "before"},
    "train_items": {"train_items": 7},
    "digits": {"digits": 3},
    "svamp_source": {"task": "svamp", "svamp_source": "other.json"},
    "reward": {"reward": "tiny_runs:noisy_reward"},
    "revision": {"revision": "main"},
    "prompt_template": {"prompt_template": "plain"},
    "dtype": {"dtype": "bfloat16"},
    "method": {
        "method": "grpo",
        "selector": None,
        "denominator": None,
        "cutoff": None,
        "keep_probability": None,
        "max_kept_tokens": None,
    },
    "seed": {"seed": 1},
    "steps": {"steps": 5},
    "prompts_per_step": {"prompts_per_step": 4},
    "group_size": {"group_size": 7},
    "temperature": {"temperature": 0.9},
    "max_new_tokens": {"max_new_tokens": 9},
    "learning_rate": {"learning_rate": 0.011},
    "warmup_steps": {"warmup_steps": 3},
    "max_grad_norm": {"max_grad_norm": 2.0},
    "lora_rank": {"lora_rank": 3},
    "lora_alpha": {"lora_alpha": 9.0},
    "lora_targets": {"lora_targets": ("q_proj",)},
    "lora_layers": {"lora_layers": (0,)},
    "ddof": {"ddof": 0},
    "eps": {"eps": 1e-5},
    "denominator": {"denominator": "completion"},
    "beta": {"beta": 0.1},
    "l2": {"l2": 0.1},
    "selector": {"selector": "latest", "token_share": 0.4},
    "token_share": {"selector": "random", "token_share": 0.3},
    "cutoff": {"cutoff": 2},
    "keep_probability": {"keep_probability": 0.25},
    "max_kept_tokens": {"max_kept_tokens": None},
    "replay_successes": {"replay_successes": 1},
    "replay_failures": {"replay_failures": 1},
    "gae_lambda": {"gae_lambda": 0.5},
    "critic_learning_rate": {"critic_learning_rate": 0.5},
    "scoring": {"scoring": "dense"},
    "token_budget": {"token_budget": 128},
    "sample_budget": {"sample_budget": 128},
    "activation_checkpointing": {"activation_checkpointing": True},
    "compile_sampling": {"compile_sampling": True},
    "device": {"device": "auto"},
    "threads": {"threads": 2},
    "eval_every": {"eval_every": 3},
    "eval_items": {"eval_items": 5},
    "test_items": {"test_items": 6},
    "kl_samples": {"kl_samples": 3},
    "extra_splits": {"extra_splits": "never"},
    "eval_batch_size": {"eval_batch_size": 5},
    "checkpoint_every": {"checkpoint_every": 4},
    "tensorboard": {"tensorboard": True},
}
#: Fields that change no number of a run.
NO_PART = ("token_budget", "sample_budget", "activation_checkpointing", "compile_sampling", "tensorboard")


def another(base: Path, field: str) -> tuple[ExperimentConfig, ExperimentConfig]:
    """A config and the same with another value of ``field``."""
    own = {"replay_successes": "t_spmo", "replay_failures": "t_spmo", "gae_lambda": "ppo", "critic_learning_rate": "ppo"}
    kind = own.get(field, "s_grpo")
    config = tiny_config(base, kind)
    return config, ExperimentConfig(**(config.model_dump() | OTHER_VALUES[field]))


BAD = [
    ({"keep_probability": 2}, "keep_probability: Input should be less than or equal to 1 (is 2)"),
    ({"lora_rank": -1}, "lora_rank: Input should be greater than or equal to 0 (is -1)"),
    ({"cutoff": 9}, "cutoff 9 is over the 8 tokens a completion can have: lower the cutoff"),
    ({"cutoff": 5}, "max_kept_tokens"),  # 4, fewer than the cutoff always keeps
    (
        {"method": "grpo", "selector": "all", "denominator": "completion"},
        "cutoff is a setting of s_grpo alone: leave it out for grpo",
    ),
    ({"replay_failures": 1}, "replay_failures is a setting of t_spmo alone: leave it out for s_grpo"),
    ({"gae_lambda": 0.5}, "gae_lambda is a setting of ppo alone: leave it out for s_grpo"),
    (
        {"method": "ppo", "cutoff": None, "keep_probability": None, "max_kept_tokens": None},
        "PPO needs gae_lambda",
    ),
    ({"velocity": 3}, "velocity is not a setting (known: profile, task"),
    ({"steps": -1}, "steps: Input should be greater than or equal to 0 (is -1)"),
    ({"steps": "many"}, "steps: Input should be a valid integer"),
    ({"seed": -1}, "seed: Input should be greater than or equal to 0 (is -1)"),
    ({"group_size": 0}, "group_size"),
    ({"temperature": 0}, "temperature: Input should be greater than 0 (is 0)"),
    ({"learning_rate": float("nan")}, "learning_rate: Input should be a finite number (is nan)"),
    ({"learning_rate": float("inf")}, "learning_rate"),
    ({"learning_rate": 1e38}, "learning_rate"),  # over 1e30 AdamW overflows before any loss can show it
    ({"max_grad_norm": 0}, "max_grad_norm"),
    ({"lora_targets": ()}, "lora_targets"),
    ({"ddof": 2}, "ddof: Input should be 0 or 1 (is 2)"),
    ({"denominator": "group"}, "denominator group does not exist for s_grpo: set it to kept or completion"),
    ({"selector": "trie"}, "selector trie does not exist for s_grpo: set it to rule or random or unbiased"),
    ({"selector": "random"}, "selector random needs token_share"),
    ({"token_share": 0.5}, "S-GRPO's rule needs cutoff and keep_probability, and no token_share"),
    ({"keep_probability": None}, "S-GRPO's rule needs cutoff and keep_probability"),
    ({"svamp_source": "a.json"}, "svamp_source is a setting of task svamp: leave it out for multiplication"),
    ({"device": "tpu"}, "device"),
    ({"task": "multiplication", "digits": 1}, "digits"),
    ({"task": "multiplication", "digits": 5}, "digits"),
    ({"max_kept_tokens": 0, "model": "a\nb"}, "max_kept_tokens"),
]


@pytest.mark.parametrize("kind", ["base", *TRAINED])
def test_a_group_of_one_is_for_methods_that_compare_nothing(random_base, kind):
    """Every group tied with itself, and a run in which nothing could be learned ended as done."""
    alone = contextlib.nullcontext()
    if kind not in ("base", "ppo"):
        alone = pytest.raises(UserError, match="compares the completions of a group: set group_size to 2 or more instead of 1")
    with alone:
        tiny_config(random_base, kind, group_size=1)


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change) for change, _ in BAD])
def test_what_is_impossible_is_refused_in_one_line(random_base, change, message):
    if "method" in change:
        change = tiny_config(random_base, "s_grpo").model_dump() | {"selector": None, "denominator": None} | change
        with pytest.raises(UserError) as error:
            load_profile(change.pop("profile"), **change)
    else:
        with pytest.raises(UserError) as error:
            tiny_config(random_base, "s_grpo", **change)
    assert str(error.value).startswith("bad config: ") and message in str(error.value) and "\n" not in str(error.value)


def test_the_base_is_not_trained():
    with pytest.raises(UserError, match="method base is not trained: set steps=0 instead of 4"):
        load_profile("smoke", method="base", steps=4)


def test_every_mistake_is_named_at_once(random_base):
    with pytest.raises(UserError, match=r"steps: .*; keep_probability: .*; speed is not a setting"):
        tiny_config(random_base, "s_grpo", steps=-1, keep_probability=2, speed=3)


@pytest.mark.parametrize(
    ("profile", "names", "message"),
    [
        ("nana", {}, "unknown profile 'nana': choose one of smoke, nano, small, paper"),
        ("nano", {"task": "poems"}, "unknown task 'poems': choose one of word_problems, multiplication, svamp, jsonl"),
        (
            "nano",
            {"method": "rloo"},
            "unknown method 'rloo': choose one of base, grpo, s_grpo, t_spmo, ppo, or package.module:object",
        ),
    ],
)
def test_unknown_names_are_refused_with_those_that_exist(profile, names, message):
    with pytest.raises(UserError) as error:
        load_profile(profile, **names)
    assert str(error.value) == message


def test_the_limit_of_the_cutoff_is_the_tasks_own_if_none_is_set():
    limit = tasks.get_task("word_problems").max_new_tokens
    values = {"task": "word_problems", "method": "s_grpo", "max_kept_tokens": None}
    assert load_profile("nano", **values, cutoff=limit).cutoff == limit
    with pytest.raises(UserError, match=f"cutoff {limit + 1} is over the {limit} tokens"):
        load_profile("nano", **values, cutoff=limit + 1)


def test_without_extra_splits_no_other_task_is_loaded_or_checked():
    """A run could be refused because a task that it never evaluates did not fit the model."""
    config = load_profile("nano", task="multiplication", method="grpo")
    assert set(config.side_tasks()) == {"other_task", "longer_numbers"}
    assert load_profile("nano", task="multiplication", method="grpo", extra_splits="never").side_tasks() == {}


def test_asides_belong_to_the_word_problems_alone():
    config = load_profile("nano", task="word_problems", method="grpo")
    assert config.asides == "after" and '"asides":"after"' in config.canonical
    assert "asides" not in load_profile("nano", task="multiplication", method="grpo").canonical
    assert load_profile("smoke", task="word_problems", method="grpo").asides == "after", "the default where a profile is silent"
    before = load_profile("nano", task="word_problems", method="grpo", asides="before")
    assert before.load_task().train[0].meta["asides"] == before.side_tasks()["longer_numbers"].test[0].meta["asides"] == "before"
    assert "asides=" in run_command(before, "out") and "asides=" not in run_command(config, "out")
    with pytest.raises(UserError, match="asides is a setting of task word_problems"):
        load_profile("nano", task="multiplication", method="grpo", asides="after")


@pytest.mark.parametrize("task", ["word_problems", "multiplication"])
def test_training_items_are_the_first_of_the_split_and_all_else_stays(task):
    config = load_profile("nano", task=task, method="grpo", train_items=64)
    few, all_of_them = config.load_task(), tasks.get_task(task)
    assert few.train == all_of_them.train[:64]
    for split in ("validation", "test", "held_out"):
        assert getattr(few, split) == getattr(all_of_them, split)
    assert len(load_profile("nano", task=task, method="grpo", train_items=10**6).load_task().train) == len(all_of_them.train)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_profile_has_every_task_and_method(profile, task, method):
    config = load_profile(profile, task=task, method=method)
    assert (config.profile, config.task, config.method) == (profile, task, method)
    assert (config.build_method() is None) == (method == "base") == (config.steps == 0)
    assert ExperimentConfig(**config.model_dump(mode="json")) == config


def test_the_contracted_call_loads_a_profile_by_its_name_alone():
    assert load_profile("smoke").profile == "smoke"
    assert load_profile("nano").lora_alpha / load_profile("nano").lora_rank == 2
    assert [setting["task"] for setting in profile_plan("nano")["settings"]] == ["word_problems", "multiplication"]


def test_every_field_says_what_it_is():
    for name, field in ExperimentConfig.model_fields.items():
        assert field.description and len(field.description) > 15, name


def test_a_config_is_frozen(random_base):
    config = tiny_config(random_base)
    with pytest.raises(ValidationError):
        config.steps = 3
    assert hash(config) == hash(tiny_config(random_base)) and config == tiny_config(random_base)


def test_equal_runs_have_equal_configs():
    """What a method does not read must not tell two of its runs apart, or the same run would be done twice."""
    assert load_profile("nano", method="s_grpo", selector="random", token_share=0.4, cutoff=None).cutoff is None
    assert load_profile("nano", method="grpo") == load_profile("nano", method="grpo", denominator="completion", selector=None)
    with pytest.raises(UserError, match="cutoff is a setting of s_grpo alone"):
        load_profile("nano", method="t_spmo", cutoff=3)


@pytest.mark.parametrize("field", sorted({*ExperimentConfig.model_fields} - {"model", "svamp_source", "data", *NO_PART}))
def test_another_value_of_any_field_is_another_run(random_base, field):
    here, there = another(random_base, field)
    assert getattr(here, field) != getattr(there, field)
    assert here.run_id != there.run_id and len(here.run_id) == 16 and int(here.run_id, 16) >= 0


@pytest.mark.parametrize("field", NO_PART)
def test_what_changes_no_number_is_no_part_of_the_run(random_base, field):
    """A run that was started on a large GPU goes on on a small one."""
    here, there = another(random_base, field)
    assert getattr(here, field) != getattr(there, field) and here.run_id == there.run_id


def test_the_path_of_svamp_is_no_part_of_the_run(random_base, monkeypatch):
    """The task's version covers the items: the same file in another place began all runs anew."""
    monkeypatch.setattr(ExperimentConfig, "load_task", lambda self: tasks.get_task("multiplication"))
    values = {"task": "svamp", "method": "base", "model": str(random_base)}
    here, there = (load_profile("smoke", **values, svamp_source=name) for name in ("a.json", "b.json"))
    assert here.run_id == there.run_id


def test_the_run_id_covers_the_base_and_the_task(tmp_path, monkeypatch):
    base = make_base(tmp_path / "model")
    before = tiny_config(base).run_id
    assert tiny_config(base).run_id == before
    (base / "README.md").write_text("a card is not part of the model")
    assert tiny_config(base).run_id == before
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        data = bytearray((base / name).read_bytes())
        data[-20] ^= 1  # one bit, the same size
        original = (base / name).read_bytes()
        (base / name).write_bytes(data)
        assert tiny_config(base).run_id != before, name
        (base / name).write_bytes(original)
        assert tiny_config(base).run_id == before, name
    for name in ("merges.txt", "tokenizer.model"):  # of older tokenizers
        (base / name).write_text("a b")
        assert tiny_config(base).run_id != before, name
        (base / name).unlink()
    task = tasks.get_task("multiplication", digits=2)
    changed = type(task)(**{**task.__dict__, "version": "another"})
    monkeypatch.setattr(experiment, "get_task", lambda name, **options: changed)
    assert tiny_config(base).run_id != before


def test_where_the_shipped_base_lies_is_no_part_of_the_run(tmp_path, monkeypatch):
    base = make_base(tmp_path / "here")
    monkeypatch.setattr(base_files, "NANO_BASE", base)
    here = load_profile("smoke", task="multiplication").run_id
    monkeypatch.setattr(base_files, "NANO_BASE", base.rename(tmp_path / "there"))
    assert load_profile("smoke", task="multiplication").run_id == here
    monkeypatch.setattr(base_files, "NANO_BASE", tmp_path / "nowhere")
    with pytest.raises(UserError, match="the shipped base is missing"):
        load_profile("smoke", task="multiplication").run_id  # noqa: B018


def test_a_folder_without_safetensors_has_no_run_id(tmp_path):
    base = make_base(tmp_path / "model")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \*\.safetensors weights in"):
        tiny_config(base).run_id  # noqa: B018


def test_a_name_on_the_hub_is_hashed_with_its_revision():
    ids = {load_profile("paper", task="multiplication", revision=revision).run_id for revision in (None, "main", "0123abc")}
    assert len(ids) == 3, "no network is touched, and each revision has its own runs"


def test_the_run_id_is_the_same_in_another_process(random_base):
    config = tiny_config(random_base, "t_spmo")
    program = f"import sys, tiny_runs; print(tiny_runs.tiny_config({str(random_base)!r}, 't_spmo').run_id)"
    environment = os.environ | {"PYTHONPATH": str(HELPERS), "PYTHONHASHSEED": "3"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [config.run_id]


def parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[ExperimentConfig, Path]:
    """What the real command line makes of ``command``, up to the call that would train."""
    seen = []

    def stand_in(config: ExperimentConfig, folder: Path) -> Any:
        seen.append((config, folder))
        raise UserError("far enough")

    monkeypatch.setattr(train, "run", stand_in)
    monkeypatch.setattr("replication.sweep.check_needs", lambda configs: None)  # what the run would need is not what is asked here
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "replication"]
    assert main(words[3:]) == 2
    return seen[0]


def test_the_command_of_every_planned_run_makes_that_run(monkeypatch):
    for profile in PROFILES:
        for run in plan(profile, variant="full"):
            config, folder = parsed(run_command(run.config, "a folder/x"), monkeypatch)
            assert config == run.config and folder == Path("a folder/x")


@pytest.mark.parametrize("field", [*OTHER_VALUES, *TRAINED])
def test_the_command_carries_every_field(random_base, monkeypatch, field):
    config = tiny_config(random_base, field) if field in TRAINED else another(random_base, field)[1]
    assert parsed(run_command(config, "x"), monkeypatch)[0] == config


#: What an argument of a command can hold, in fields of several kinds.
FIELDS = ("model", "revision", "svamp_source", "lora_targets", "prompt_template", "learning_rate")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    model=TEXT,
    revision=TEXT | st.none(),
    svamp_source=TEXT | st.none(),
    lora_targets=st.lists(TEXT, min_size=1, max_size=2).map(tuple),
    prompt_template=st.sampled_from(["plain", "chat", None]),
    learning_rate=st.floats(0, 1e30),
)
@example(**dict(zip(FIELDS, ("a #2", "1234567", "null", ("\U0001f600",), None, 1e-5), strict=True)))
@example(**dict(zip(FIELDS, ("[x", "007", '"quoted"', ("null",), "chat", 0.0), strict=True)))
def test_every_printed_command_reads_back(**fields):
    """Text was read as YAML: `a #2` became another model, a revision of digits was refused, an emoji could not be read."""
    config = load_profile("paper", task="svamp", method="grpo", **fields)
    with pytest.MonkeyPatch.context() as patch:
        assert parsed(run_command(config, "x"), patch)[0] == config


def test_a_clone_that_rewrites_line_ends_has_the_same_bytes(tmp_path):
    """With core.autocrlf=true the base had another checksum, and every run another id."""

    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "core.autocrlf=true"]
        subprocess.run(["git", *who, *words], check=True, capture_output=True)

    there, clone = tmp_path / "there", tmp_path / "clone"
    names = [".gitattributes", "data/claims.yaml", *(f"data/nano-base/{path.name}" for path in NANO_BASE.iterdir())]
    names += [f"replication/profiles/{name}.yaml" for name in PROFILES]
    for name in names:
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, there / name)
    git("-C", str(there), "init", "-q")
    git("-C", str(there), "add", "-A")
    git("-C", str(there), "commit", "-qm", "x")
    git("clone", "-q", str(there), str(clone))
    for name in names:
        assert (clone / name).read_bytes() == (ROOT / name).read_bytes(), name
