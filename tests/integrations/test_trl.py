"""TokenCreditTrainer against TRL's own trainer, against this project's objective, and against itself under every way to split."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

if importlib.util.find_spec("trl") is None:
    pytest.skip("TRL is not installed (the extra trl)", allow_module_level=True)

import trl
import trl_runs as runs
from packaging.version import Version
from peft import LoraConfig
from tiny_runs import make_base
from transformers import Qwen2VLProcessor
from trl.trainer import grpo_trainer

from replication.algorithms import GRPO, SGRPO, TSPMO, SelectedGRPO, TokenCredit
from replication.errors import UserError
from replication.integrations.trl import NEEDED_SETTINGS, TokenCreditTrainer, check_engine
from replication.objective import surrogate_loss
from replication.randomness import stream
from replication.scoring import token_log_probs

ROOT = Path(__file__).resolve().parents[2]
VERSION = Version(trl.__version__)
#: Of the 16 completions of a step: whole groups in a micro-batch, parts of groups, single ones; two generations for a step.
SPLITS = {
    "whole groups": {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 4},
    "parts of groups": {"gradient_accumulation_steps": 8, "per_device_train_batch_size": 2},
    "single completions": {"gradient_accumulation_steps": 16, "per_device_train_batch_size": 1},
    "two generations": {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 4, "steps_per_generation": 2},
}


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Narrower weights than those of the other tests: in theirs, rounding alone moves a gradient by over 1e-5."""
    return make_base(tmp_path_factory.mktemp("base") / "random-qwen2", initializer_range=0.2)


def lora() -> LoraConfig:
    # Both halves of the adapter are random: the usual zero half would hide the gradients of the other.
    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """Equal to ``tolerance`` of the largest entry of all, and not all zero."""
    assert one.keys() == other.keys()
    scale = max(value.abs().max() for value in other.values())
    assert scale > 0
    worst = {name: ((one[name] - value).abs().max() / scale).item() for name, value in other.items()}
    assert max(worst.values()) < tolerance, {name: value for name, value in worst.items() if value >= tolerance}


# ---------------------------------------------------------------------------------------------- equal to stock TRL


STOCK = {
    "all parameters": {},
    "adapter": {"lora": True},
    "dense": {"scoring": "dense"},
    "groups that tie": {"rewards": runs.short},
    "two rewards with weights": {"rewards": [runs.varied, runs.short], "reward_weights": [1.0, 0.3]},
    "accumulation": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    "two generations a step": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "steps_per_generation": 2},
    "cut-off completions masked": {"mask_truncated_completions": True},
    "temperature": {"temperature": 0.7},
    "KL to a reference model": {"beta": 0.3},
    "KL to the base of an adapter": {"beta": 0.3, "lora": True},
    "KL without its correction": {"beta": 0.3, "lora": True, "use_bias_correction_kl": False},
    "activation checkpointing": {"gradient_checkpointing": True, "lora": True},
}


@pytest.mark.parametrize("case", STOCK)
def test_grpo_is_trls_own(case: str, random_base: Path):
    """The same loss and gradient as GRPOTrainer, for each of its settings that the credit has to follow."""
    named = {**STOCK[case]}
    scoring = named.pop("scoring", "packed")
    pairs = []
    for credit, more in ((None, {}), (GRPO(), {"scoring": scoring})):
        trainer, recorder = runs.make_trainer(random_base, credit, **{**named, **more, "lora": lora() if "lora" in named else None})
        if named.get("beta"):
            away_from_the_reference(trainer)
        trainer.train()
        pairs.append((trainer.state.log_history[0]["loss"], recorder.gradients[0]))
    (loss, gradient), (our_loss, our_gradient) = pairs
    assert_same(our_gradient, gradient)
    assert our_loss == pytest.approx(loss, rel=1e-5, abs=1e-5)


def away_from_the_reference(trainer: Any) -> None:
    """Move the trained weights: at the reference itself the KL and its gradient are zero."""
    torch.manual_seed(1)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)


@pytest.mark.skipif(Version("1.8") > VERSION, reason="before 1.8 TRL gave an unscored completion the reward 0")
def test_unscored_completions_are_left_out_as_in_trl(random_base: Path):
    """A reward function that returns None: the completion counts neither in mean nor in deviation, but in the number of all."""
    ours = runs.gradients(random_base, GRPO(), rewards=runs.some_unscored)
    assert_same(ours, runs.gradients(random_base, rewards=runs.some_unscored))


@pytest.mark.parametrize("mode", ["sequence_mask", "token_truncate"])
def test_vllms_sampling_is_corrected_as_in_trl(mode: str, random_base: Path):
    """The ratio of the model's probabilities to the sampler's, for a token or a completion, multiplies the advantage."""

    def with_log_probs(prompts: list[str], trainer: Any) -> dict[str, Any]:
        output = runs.rollout(prompts, trainer)
        output["logprobs"] = [[-0.1 * (token % 7) - 2.0 for token in tokens] for tokens in output["completion_ids"]]
        return output

    gradients = []
    for credit in (None, GRPO()):
        clip = {"vllm_importance_sampling_mode": mode, cap(): 9.0}
        trainer, recorder = runs.make_trainer(random_base, credit, rollout_func=with_log_probs, **clip)
        trainer.use_vllm, trainer._last_loaded_step = True, -1  # without its engine, which rollout_func stands in for
        trainer.vllm_generation = SimpleNamespace(sync_weights=lambda: None)
        trainer.train()
        gradients.append(recorder.gradients[0])
    assert_same(gradients[1], gradients[0])


def cap() -> str:
    new = "vllm_importance_sampling_clip_max"
    return new if hasattr(runs.settings(), new) else "vllm_importance_sampling_cap"


class Repeatable:
    """Sampling that depends on the step and the weights alone: a shuffle of another length would shift all later draws."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        torch.manual_seed(self.state.global_step)
        return super()._generate_and_score_completions(inputs)


class Stock(Repeatable, runs.GRPOTrainer): ...


class Ours(Repeatable, TokenCreditTrainer): ...


def weights_after(trainer: Any, **named: Any) -> dict[str, torch.Tensor]:
    trainer.train(**named)
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_ten_steps_of_grpo_give_trls_weights(random_base: Path):
    """Ten steps of sampling, AdamW and clipping: the same completions all the way, and the same adapter."""
    named = {"rollout_func": None, "max_steps": 10, "lora": lora(), "max_grad_norm": 1.0, "num_train_epochs": 10}
    stock, _ = runs.make_trainer(random_base, kind=Stock, **named)
    ours, _ = runs.make_trainer(random_base, GRPO(), kind=Ours, **{**named, "lora": lora()})
    start = {name: p.detach().clone() for name, p in ours.model.named_parameters() if p.requires_grad}
    expected, got = weights_after(stock), weights_after(ours)
    rewards = [[row["reward"] for row in trainer.state.log_history if "reward" in row] for trainer in (stock, ours)]
    assert len(rewards[0]) == 10 and rewards[0] == rewards[1]
    assert_same({n: got[n] - start[n] for n in got}, {n: expected[n] - start[n] for n in got}, tolerance=1e-3)


# ------------------------------------------------------------------------------------- equal to this project's objective


@pytest.mark.parametrize("rule", ["s_grpo", "t_spmo"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_sparse_methods_have_the_gradient_of_our_objective(rule: str, beta: float, random_base: Path):
    """The same completions, credited and scored here without TRL."""
    named = {"lora": lora(), "beta": beta, "use_bias_correction_kl": False}
    trainer, recorder = runs.make_trainer(random_base, runs.RULES[rule], **named)
    away_from_the_reference(trainer)
    model = runs.make_trainer(random_base, runs.RULES[rule], **{**named, "lora": lora()})[0].model
    model.load_state_dict(trainer.model.state_dict())
    prompts = trainer.processing_class(runs.PROMPTS)["input_ids"]
    sampled = runs.rollout([prompt for prompt in runs.PROMPTS for _ in range(runs.SIZE)], trainer)["completion_ids"]
    groups = [sampled[start : start + runs.SIZE] for start in range(0, len(sampled), runs.SIZE)]
    credits = [
        runs.RULES[rule].assign(group, torch.tensor(runs.varied(group)), stream(42, "selection", "train", 0, index))
        for index, group in enumerate(groups)
    ]
    log_probs = token_log_probs(model, prompts, groups, credits, strategy="dense")
    reference = None
    if beta:
        with torch.no_grad(), model.disable_adapter():
            reference = token_log_probs(model, prompts, groups, credits, strategy="dense")
    loss, _ = surrogate_loss(log_probs, credits, reference_log_probs=reference, beta=beta)
    loss.backward()
    trainer.train()
    assert_same(recorder.gradients[0], {name: p.grad for name, p in model.named_parameters() if p.requires_grad})


# ---------------------------------------------------------------------------------------- equal however it is split


@pytest.fixture(scope="module")
def unsplit(random_base: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The gradient of a step in one micro-batch, by rule."""
    return {rule: runs.gradients(random_base, runs.RULES[rule]) for rule in ("s_grpo", "t_spmo")}


@pytest.mark.parametrize("rule", ["s_grpo", "t_spmo"])
@pytest.mark.parametrize("split", SPLITS)
def test_accumulation_and_parts_of_groups_change_nothing(rule: str, split: str, unsplit, random_base: Path):
    """TRL shuffles and splits what it sampled: credit on what is left of a group would be another one."""
    assert_same(runs.gradients(random_base, runs.RULES[rule], **SPLITS[split]), unsplit[rule])


def test_whole_groups_stay_together(random_base: Path):
    """What a group shares is computed once only if its completions are in one micro-batch."""
    logs = []
    for steps in (1, 4):
        fields = {"gradient_accumulation_steps": steps, "per_device_train_batch_size": 16 // steps}
        trainer, _ = runs.make_trainer(random_base, TSPMO(), **fields)
        seen: list[list[int]] = []
        original = trainer._compute_loss

        def compute(model, inputs, original=original, seen=seen):
            (batch,) = inputs["micro_batch"]
            seen.append([len(group) for group in batch.completions])
            return original(model, inputs)

        trainer._compute_loss = compute
        trainer.train()
        logs.append(seen)
    assert logs == [[[4, 4, 4, 4]], [[4], [4], [4], [4]]]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["s_grpo", "t_spmo"])
def test_two_processes_give_the_gradient_of_one(rule: str, random_base: Path, tmp_path: Path):
    """Groups of 4 in micro-batches of 6 completions: one group lies in both processes."""
    fields = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1}
    alone = {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 1}
    trainer, recorder = runs.make_trainer(random_base, runs.RULES[rule], **alone)
    trainer.train()
    found = launched(random_base, tmp_path / "two.pt", rule, **fields)
    assert_same(found["gradients"], recorder.gradients[0])
    assert found["log"]["kept_fraction"] == trainer.state.log_history[0]["kept_fraction"]
    assert found["log"]["tied_groups"] == trainer.state.log_history[0]["tied_groups"]


@pytest.mark.slow
def test_a_process_whose_groups_all_tie_still_takes_part(random_base: Path, tmp_path: Path):
    """It has nothing to score, but DDP waits for the gradients of every process: the step would hang or raise."""
    fields = {"gradient_accumulation_steps": 2, "rewards": '"nothing_after_the_first"'}
    found = launched(random_base, tmp_path / "two.pt", "t_spmo", per_device_train_batch_size=4, max_steps=2, **fields)
    alone = runs.gradients(random_base, TSPMO(), rewards=runs.nothing_after_the_first)
    assert_same(found["gradients"], alone)
    assert found["log"]["tied_groups"] == 0.75


def launched(base: Path, out: Path, rule: str, **fields: Any) -> dict[str, Any]:
    """``trl_runs.py`` in two processes on gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # `accelerate launch --cpu` wants MPI for several processes; torch's launcher sets what accelerate reads.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--master_addr", "127.0.0.1", "--master_port", port]
    script = [str(Path(runs.__file__)), str(base), str(out), rule, *(f"{name}={value}" for name, value in fields.items())]
    result = subprocess.run([*launcher, *script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return torch.load(out)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(random_base: Path, tmp_path: Path):
    """Two of four steps, then a new trainer from the checkpoint: the same completions, the same draws, the same adapter."""
    named = {"rollout_func": None, "kind": Ours, "max_steps": 4, "num_train_epochs": 4, "save_strategy": "steps", "save_steps": 2}
    named |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8, "output_dir": str(tmp_path)}
    rule = runs.RULES["s_grpo"]  # the one that draws
    whole = weights_after(runs.make_trainer(random_base, rule, lora=lora(), **named)[0])
    again, _ = runs.make_trainer(random_base, rule, lora=lora(), **named)
    resumed = weights_after(again, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 4
    card = (tmp_path / "README.md").read_text()
    assert type(rule).__name__ in card and "2402.03300" not in card  # says the rule, not GRPO's paper
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


# ------------------------------------------------------------------------------------------------ rules, logs, evaluation


class LastToken:
    """A user's rule: of each completion the last token alone, with the reward itself as its advantage."""

    def assign(self, completions, rewards, generator=None) -> TokenCredit:
        size = len(completions)
        position = torch.tensor([len(tokens) - 1 for tokens in completions])
        return TokenCredit(torch.arange(size), position, rewards, torch.full((size,), 1 / size))


def test_a_rule_of_ones_own(random_base: Path):
    """Its gradient is that of -mean(reward * log p(last token)), which takes three lines without any of this."""
    trainer, recorder = runs.make_trainer(random_base, LastToken())
    model = runs.make_trainer(random_base, LastToken())[0].model
    sampled = runs.rollout([prompt for prompt in runs.PROMPTS for _ in range(runs.SIZE)], trainer)
    loss = 0.0
    for index, (tokens, reward) in enumerate(zip(sampled["completion_ids"], runs.varied(sampled["completion_ids"]), strict=True)):
        prompt = trainer.processing_class(runs.PROMPTS[index // runs.SIZE])["input_ids"]
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits
        loss = loss - reward * logits[0, -2].log_softmax(-1)[tokens[-1]] / 16
    loss.backward()
    trainer.train()
    assert_same(recorder.gradients[0], {name: p.grad for name, p in model.named_parameters()})
    # Every group has a credited last token, so a step forwards all distinct prefixes: fewer than the dense 16 rows.
    longest = max(len(tokens) for tokens in sampled["completion_ids"])
    assert 0 < trainer.state.log_history[0]["tokens_forwarded"] < 16 * longest + sum(map(len, sampled["prompt_ids"]))


class Late:
    """A user's rule with a bug that the trial on completions of two tokens does not reach; without a bug, one that is careless."""

    def __init__(self, bug: Any = None) -> None:
        self.bug = bug

    def assign(self, completions, rewards, generator=None) -> Any:
        credit = GRPO().assign(completions, rewards)
        if self.bug is None:
            rewards -= 7.0
            completions.pop()[0] = 0
        return credit if self.bug is None or max(map(len, completions)) <= 2 else self.bug(credit)


BUGS = {
    "NaN": (lambda credit: replace(credit, advantage=credit.advantage / 0), "the credit's advantage is "),
    "no credit": (lambda credit: None, "assign returned a NoneType, not a TokenCredit"),
    "a list": (lambda credit: [credit], "assign returned a list, not a TokenCredit"),
    "outside": (lambda credit: replace(credit, completion=credit.completion + 1), "names a completion outside the group's 4"),
    "an error": (lambda credit: {}["late"], "(KeyError: 'late', line "),
}


@pytest.mark.parametrize(("bug", "said"), BUGS.values(), ids=BUGS.keys())
def test_credit_that_cannot_be_learned_from_stops_the_training_with_the_rules_name(bug: Any, said: str, random_base: Path):
    """One NaN made every weight of the adapter NaN while the log said loss 0; other bugs ended inside torch, without the rule."""
    trainer, recorder = runs.make_trainer(random_base, Late(bug))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(UserError, match=r"credit=.*Late.* fails on 4 completions of \d+ to \d+ tokens \(") as error:
        trainer.train()
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not recorder.gradients and all(torch.equal(before[name], p) for name, p in trainer.model.named_parameters())


def test_a_rule_may_change_what_it_is_given(random_base: Path):
    """It gets copies: those that are scored and logged stay as they were."""
    found = []
    for rule in (GRPO(), Late()):
        trainer, recorder = runs.make_trainer(random_base, rule)
        trainer.train()
        found.append((recorder.gradients[0], {name: trainer.state.log_history[0][name] for name in ("reward", "kept_fraction")}))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(gradient, found[1][0][name]) for name, gradient in found[0][0].items())


def test_what_is_logged(random_base: Path):
    """kept_fraction counts the groups that do not tie; tokens_forwarded is the sum over the micro-batches of a step."""
    forwarded = {}
    for steps in (1, 16):
        fields = {"gradient_accumulation_steps": steps, "per_device_train_batch_size": 16 // steps}
        trainer, _ = runs.make_trainer(
            random_base, SGRPO(1, 0.0, 1), rewards=runs.nothing_after_the_first, scoring="dense", **fields
        )
        sampled = runs.rollout([runs.PROMPTS[0]] * runs.SIZE, trainer)
        trainer.train()
        log = trainer.state.log_history[0]
        lengths = [len(tokens) for tokens in sampled["completion_ids"]]
        assert log["kept_fraction"] == pytest.approx(runs.SIZE / sum(lengths))
        assert log["tied_groups"] == 0.75 == log["frac_reward_zero_std"]
        forwarded[steps] = log["tokens_forwarded"]
    prompt = len(sampled["prompt_ids"][0])
    # Dense: every token of the one group that has credit.
    assert forwarded == {1: runs.SIZE * prompt + sum(lengths), 16: runs.SIZE * prompt + sum(lengths)}


def test_nothing_is_forwarded_where_all_groups_tie(random_base: Path):
    """No credit, no pass through the model, a zero gradient, and no kept_fraction."""
    trainer, recorder = runs.make_trainer(random_base, TSPMO(), rewards=lambda prompts, **_: [1.0] * len(prompts))
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["tokens_forwarded"] == 0 and log["tied_groups"] == 1 and log.get("kept_fraction") is None
    assert all(not gradient.any() for gradient in recorder.gradients[0].values())


def test_evaluation(random_base: Path):
    """An evaluation has its own group size and its own logs, and changes nothing in the training after it."""
    from datasets import Dataset

    data = Dataset.from_list([{"prompt": prompt} for prompt in runs.PROMPTS])
    named = {"num_generations_eval": 2, "per_device_eval_batch_size": 4, "eval_strategy": "steps", "eval_steps": 1}
    named |= {"eval_dataset": data, "max_steps": 2, "num_train_epochs": 2}
    trainer, recorder = runs.make_trainer(random_base, SGRPO(1, 0.5, 3), **named)
    trainer.train()
    evaluated = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert len(evaluated) == 2 and all(0 < row["eval_kept_fraction"] < 1 for row in evaluated)
    undisturbed, expected = runs.make_trainer(random_base, SGRPO(1, 0.5, 3), max_steps=2, num_train_epochs=2)
    undisturbed.train()
    assert_same(recorder.gradients[1], expected.gradients[1], tolerance=1e-12)


def test_bfloat16(random_base: Path):
    """Under autocast the masks and the output layer have other dtypes; TRL trains so by default."""
    pair = [runs.gradients(random_base, TSPMO(), bf16=half, lora=lora()) for half in (False, True)]
    exact, half = (torch.cat([value.flatten() for value in gradient.values()]) for gradient in pair)
    assert torch.cosine_similarity(exact, half, dim=0) > 0.99


def test_the_script_of_the_docs_trains_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On the problems of docs/extending.md and the nano base, which solves some of them."""
    monkeypatch.chdir(tmp_path)
    script, problems = (
        re.search(rf"^```{fence}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.S | re.M)[1]
        for page, fence in (("trl.md", "python"), ("extending.md", "json problems.jsonl"))
    )
    (tmp_path / "problems.jsonl").write_text(problems)
    given: dict[str, Any] = {}
    exec(script, given)
    state = given["trainer"].state
    assert state.global_step == state.max_steps > 0
    kept = [row["kept_fraction"] for row in state.log_history if row.get("tied_groups", 1.0) < 1]
    assert kept and all(0 < share < 0.2 for share in kept)


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "fields",
    [
        {"loss_type": "dapo"},
        {"num_iterations": 2},
        {"importance_sampling_level": "sequence"},
        {"scale_rewards": "batch"},
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"top_entropy_quantile": 0.5},
        {"entropy_coef": 0.1},
        {"use_adaptive_entropy": True},
        {"off_policy_mask_threshold": 0.1},
        {"use_liger_kernel": True},
        {"gradient_accumulation_steps": 1, "steps_per_generation": 2},
    ],
    ids=lambda fields: next(reversed(fields)),
)
def test_a_setting_that_cannot_work_is_refused_before_the_model_is_loaded(fields: dict[str, Any]):
    if not hasattr(runs.settings(), next(iter(fields))):
        pytest.skip("this version of TRL has no such setting")
    with pytest.raises(UserError, match=next(reversed(fields))) as refusal:
        TokenCreditTrainer(credit=TSPMO(), model="no such model", reward_funcs=runs.varied, args=runs.settings(**fields))
    assert "\n" not in str(refusal.value)


def test_each_needed_setting_is_accepted_as_needed():
    """No needed value is one that GRPOConfig itself would not take."""
    fields = {name: value for name, (value, _) in NEEDED_SETTINGS.items() if hasattr(runs.settings(), name)}
    assert runs.settings(**fields).loss_type == "grpo"


def wants_values(completions, rewards, generator=None, *, values):
    raise AssertionError("never called")


@pytest.mark.parametrize(
    ("named", "word"),
    [
        ({"credit": SelectedGRPO("entropy", 0.5)}, "needs entropies: TRL gives completions, rewards and a generator alone"),
        ({"credit": SimpleNamespace(assign=GRPO().assign, needs=("entropies",))}, "needs entropies: TRL"),
        ({"credit": TSPMO}, r"pass TSPMO\(\), not the class"),
        ({"credit": SimpleNamespace(assign=lambda *_: None)}, "returned a NoneType, not a TokenCredit"),
        ({"credit": SimpleNamespace(assign=wants_values)}, "values"),
        ({"credit": object()}, "assign"),
        ({"scoring": "sparse"}, "scoring"),
        ({"tools": [print]}, "tools"),
        ({"environment_factory": object}, "environment_factory"),
    ],
    ids=["entropies", "entropies that it can do without", "a class", "no credit", "a keyword of one's own", "no rule", "scoring",
         "tools", "environment"],  # fmt: skip
)
def test_a_rule_or_argument_that_cannot_work_is_refused(named: dict[str, Any], word: str):
    given = {"credit": TSPMO(), "model": "no such model", "reward_funcs": runs.varied, "args": runs.settings(), **named}
    with pytest.raises(UserError, match=word):
        TokenCreditTrainer(**given)


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"is_fsdp_enabled": True}, "FSDP"),
        ({"is_deepspeed_enabled": True}, "ZeRO 3"),
        ({"aux_loss_enabled": True}, "router_aux_loss_coef"),
        ({"processing_class": Qwen2VLProcessor.__new__(Qwen2VLProcessor)}, "vision"),
    ],
    ids=["FSDP", "ZeRO 3", "a router's loss", "vision"],
)
def test_an_engine_or_model_that_cannot_work_is_refused(facts: dict[str, Any], word: str):
    usual = {"processing_class": None, "is_fsdp_enabled": False, "is_deepspeed_enabled": False, "aux_loss_enabled": False}
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    trainer = SimpleNamespace(accelerator=SimpleNamespace(state=state), **{**usual, **facts})
    with pytest.raises(UserError, match=word):
        check_engine(trainer)
    state.deepspeed_plugin.zero_stage = 2
    check_engine(SimpleNamespace(accelerator=trainer.accelerator, **{**usual, "is_deepspeed_enabled": True}))


def test_tokens_of_an_environment_are_refused(random_base: Path):
    def with_mask(prompts: list[str], trainer: Any) -> dict[str, Any]:
        output = runs.rollout(prompts, trainer)
        return {**output, "env_mask": [[1] * len(tokens) for tokens in output["completion_ids"]]}

    trainer, _ = runs.make_trainer(random_base, GRPO(), rollout_func=with_mask)
    with pytest.raises(UserError, match="env_mask"):
        trainer.train()


# ---------------------------------------------------------------------------------------------- what it relies on in TRL


def test_trl_still_has_what_is_overridden_and_what_is_read(random_base: Path):
    trainer, _ = runs.make_trainer(random_base, beta=0.1)
    trainer.train()
    overridden = ["_calculate_rewards", "_generate_and_score_completions", "_compute_loss", "_tag_names", "_name", "_paper"]
    read = ["_metrics", "num_generations", "num_generations_eval", "reward_weights", "temperature", "beta"]
    read += ["current_gradient_accumulation_steps", "is_deepspeed_enabled", "is_fsdp_enabled"]
    missing = [name for name in overridden if not hasattr(grpo_trainer.GRPOTrainer, name)]
    missing += [name for name in read if not hasattr(trainer, name)]
    inputs = [{"prompt": prompt} for prompt in runs.PROMPTS for _ in range(runs.SIZE)]
    batch = trainer._generate_and_score_completions(inputs)
    keys = ["prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "ref_per_token_logps"]
    assert not missing + [key for key in keys if key not in batch]


def test_trl_still_shuffles_and_splits_lists_along_their_first_dimension():
    """What it gets from us is a list of whole micro-batches beside their numbers."""
    given = {"index": torch.arange(3), "micro_batch": ["first", "second", "third"]}
    shuffled = grpo_trainer.shuffle_sequence_dict(given)
    assert [given["micro_batch"][index] for index in shuffled["index"]] == shuffled["micro_batch"]
    parts = grpo_trainer.split_tensor_dict(given, 3)
    assert [part["micro_batch"] for part in parts] == [["first"], ["second"], ["third"]]
