"""One frozen, flat config for a run, and the run id that names it.

Marks in the descriptions say how sure we are that a value is the paper's: [P] stated in the paper's abstract, [S] second-hand
descriptions of its method section, [R] our reconstruction where the text at hand is silent.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from replication.algorithms import GRPO, PPO, SELECTORS, SGRPO, TSPMO, BranchGRPO, SelectedGRPO
from replication.base_files import base_fingerprint, is_local
from replication.names import METHODS, NANO_BASE
from replication.tasks import Task, completion_limit, get_task, with_template
from replication.user_code import OwnRule, describe, is_import_path, load_reward, load_rule

_DENOMINATORS = {
    "base": ("completion",),
    "grpo": ("completion", "group_tokens"),
    "s_grpo": ("kept", "completion"),
    "t_spmo": ("group", "transitions"),
    "ppo": ("completion", "group_tokens"),
}
_SELECTORS = {
    "base": ("none",),
    "grpo": ("all", "all_and_branches"),
    "s_grpo": ("rule", *SELECTORS),
    "t_spmo": ("trie",),
    "ppo": ("all",),
}
#: Denominator and selector of a reader's own rule.
_OWN = ("own",)
#: Fields that only one method or one task reads: elsewhere they stay unset, so that equal runs have equal configs.
FIELDS_OF_A_METHOD = {
    "s_grpo": ("cutoff", "keep_probability", "max_kept_tokens", "token_share"),
    "t_spmo": ("replay_successes", "replay_failures"),
    "ppo": ("gae_lambda", "critic_learning_rate"),
}
_FIELD_OF_A_TASK = {"word_problems": "asides", "svamp": "svamp_source", "jsonl": "data"}

#: Settings that bound memory and change a run's numbers by rounding alone. A run id is computed with their defaults, so that a
#: run can start or resume with whatever fits the GPU.
MEMORY_FIELDS = ("token_budget", "activation_checkpointing")
#: Left out of the run id: paths of local files, whose bytes it covers, and what changes no number but by rounding.
_NO_PART = {"svamp_source", "data", "tensorboard", "sample_budget", "compile_sampling"}


class ExperimentConfig(BaseModel):
    """Everything that decides the outcome of one run; anything unknown is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    profile: Literal["smoke", "nano", "small", "paper"] = Field(description="name of the profile the run belongs to")
    task: Literal["word_problems", "multiplication", "svamp", "jsonl"] = Field(description="task trained and evaluated on")
    asides: Literal["none", "before", "after"] | None = Field(
        None, description="where the chat of a word problem's answer stands (that task only); default there: after [R]"
    )
    train_items: int | None = Field(None, ge=1, description="train on the first so many problems alone; none = on all [R]")
    digits: int = Field(2, ge=2, le=4, description="digits of each factor (multiplication only); 3 in the paper [S]")
    svamp_source: str | None = Field(
        None, min_length=1, description="path to the official SVAMP.json; none = download from the Hub"
    )
    data: str | None = Field(None, min_length=1, description="path to the problems of task jsonl, one in each line")
    reward: str | None = Field(
        None, min_length=1, description="package.module:function of (text, problem), from 0 to 1; none = 1 for a right answer"
    )
    model: str = Field("nano", min_length=1, description='"nano", a folder, a GGUF file, a Hub name; Qwen2-1.5B in the paper [P]')
    prompt_template: Literal["plain", "question_answer", "chat"] | None = Field(
        None, description="how a question is put to the model (replication/tasks/prompts.py); none = the task's own [R]"
    )
    revision: str | None = Field(None, min_length=1, description="commit, tag or branch on the Hub; none = its main branch")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32", description="dtype of the frozen weights, adapters are float32; auto = by what the device computes fast [R]"
    )
    method: str = Field(description="base (evaluation only), grpo, s_grpo, t_spmo, ppo, or package.module:object with assign")
    seed: int = Field(0, ge=0, description="random seed of the run; every random stream is derived from it")

    steps: int = Field(ge=0, description="optimizer steps [R]")
    prompts_per_step: int = Field(8, ge=1, description="problems (groups) per step [R]")
    group_size: int = Field(16, ge=1, description="G, completions sampled per problem [R]")
    temperature: float = Field(1.0, gt=0, le=10, description="of sampling and scoring alike, nothing else reshapes the logits [R]")
    max_new_tokens: int | None = Field(None, ge=1, description="limit of a completion; none = the task's own [R]")

    learning_rate: float = Field(1e-3, ge=0, le=1e30, description="of AdamW, constant after warm-up; tuned on validation [R]")
    warmup_steps: int = Field(5, ge=0, description="steps of linear warm-up [R]")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping; the share of clipped steps is logged [R]")
    lora_rank: int = Field(8, ge=0, description="rank of the adapter; 0 = full fine-tuning without an adapter [R]")
    lora_alpha: float = Field(16.0, gt=0, description="the adapter is scaled by alpha / rank [R]")
    lora_targets: tuple[str, ...] = Field(("q_proj", "v_proj"), min_length=1, description="modules with an adapter [R]")
    lora_layers: tuple[int, ...] | None = Field(None, description="layers with an adapter; none = all [R]; the paper: some [S]")

    ddof: Literal[0, 1] = Field(1, description="of the standard deviation in the advantage [R]")
    eps: float = Field(1e-4, ge=0, description="added to that standard deviation [R]")
    denominator: Literal["completion", "group_tokens", "kept", "group", "transitions", "own"] = Field(
        description="what a token's weight is divided by; default: completion, kept (S-GRPO), group (T-SPMO), a rule's own [R]"
    )
    beta: float = Field(0.0, ge=0, description="weight of the KL term [R]")
    l2: float = Field(0.0, ge=0, description="lambda, weight of the squared norm of the adapter [R]")
    selector: Literal["none", "all", "rule", "trie", "all_and_branches", *SELECTORS, "own"] = Field(  # type: ignore[valid-type]
        description="which tokens are credited; default by method: all, rule (S-GRPO), trie (T-SPMO); the others are controls "
        "(replication/algorithms/controls.py) that run as method s_grpo, all_and_branches as grpo [R]"
    )
    token_share: float | None = Field(None, gt=0, le=1, description="share of tokens for the controls [R]")
    cutoff: int | None = Field(None, ge=0, description="alpha of S-GRPO: earlier positions are always kept [R]")
    keep_probability: float | None = Field(None, ge=0, le=1, description="P of S-GRPO: chance of a later position to be kept [R]")
    max_kept_tokens: int | None = Field(None, ge=1, description="k of S-GRPO; none = no limit [R]")
    replay_successes: int | None = Field(None, ge=0, description="T-SPMO: restarts from successful completions per group [R]")
    replay_failures: int | None = Field(None, ge=0, description="T-SPMO: restarts from failed completions per group [R]")

    gae_lambda: float | None = Field(None, ge=0, le=1, description="PPO: lambda of the generalised advantage [R]")
    critic_learning_rate: float | None = Field(
        None, gt=0, le=1e30, description="PPO: learning rate of the critic; none = that of the policy [R]"
    )

    scoring: Literal["packed", "dense"] = Field("packed", description="how log-probs are computed; the values are the same")
    token_budget: int = Field(
        16384, ge=64, description="tokens in the model at a time, in scoring and sampling; bounds memory, not the result"
    )
    sample_budget: int | None = Field(
        None, ge=64, description="tokens at a time in sampling, which holds far less of each; none = token_budget"
    )
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")
    compile_sampling: bool = Field(
        False,
        exclude_if=operator.not_,  # a run without it has the config, the id and the tables of before
        description="compile the model's passes in sampling, on a GPU into CUDA graphs; its cache stays in memory all along",
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?|auto)$", description="cpu, cuda or auto")

    threads: int = Field(
        1, ge=1, le=256, description="CPU threads of a run: sums in float32 depend on it, so it belongs to the config"
    )

    eval_every: int = Field(25, ge=1, description="steps between evaluations on the validation split")
    eval_items: int = Field(200, ge=1, description="validation items per evaluation (also of each extra split at the end)")
    test_items: int = Field(300, ge=1, description="test items, evaluated once at the end")
    kl_samples: int = Field(
        4, ge=1, description="completions sampled of each test item at the end, for sampled accuracy and the KL to the base"
    )
    extra_splits: Literal["never", "at_end", "always"] = Field(
        "at_end",
        description="when to evaluate also trained items and held-out templates (at_end: and the other task, longer numbers)",
    )
    eval_batch_size: int = Field(100, ge=1, description="fixed, so that padding never changes between evaluations")
    checkpoint_every: int = Field(25, ge=1, description="steps between checkpoints: the most a kill can cost")
    tensorboard: bool = Field(
        False,
        exclude_if=operator.not_,
        description="also write TensorBoard event files beside metrics.jsonl (extra tensorboard)",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("method"), str):
            return values
        values = dict(values)
        if values.get("task") == "word_problems" and values.get("asides") is None:
            values["asides"] = "after"
        for name, choices in (("denominator", _DENOMINATORS), ("selector", _SELECTORS)):
            if values.get(name) is None:
                values[name] = choices.get(values["method"], _OWN)[0]
        if values["method"] == "s_grpo" and values["selector"] != "rule":
            # A control replaces the rule: what a profile says about the rule does not apply to it.
            values |= dict.fromkeys(("cutoff", "keep_probability", "max_kept_tokens"))
        return values

    @field_validator("method")
    @classmethod
    def _method_exists(cls, method: str) -> str:
        if method not in METHODS and not is_import_path(method):
            raise ValueError(f"choose one of {', '.join(METHODS)}, or package.module:object")
        return method

    @model_validator(mode="after")
    def _fields_fit_the_method(self) -> ExperimentConfig:
        for name, choices in (("denominator", _DENOMINATORS), ("selector", _SELECTORS)):
            if getattr(self, name) not in choices.get(self.method, _OWN):
                allowed = " or ".join(choices.get(self.method, _OWN))
                raise ValueError(f"{name} {getattr(self, name)} does not exist for {self.method}: set it to {allowed}")
        for method, fields in FIELDS_OF_A_METHOD.items():
            for name in fields:
                if method != self.method and getattr(self, name) is not None:
                    raise ValueError(f"{name} is a setting of {method} alone: leave it out for {self.method}")
        if self.method == "base" and self.steps:
            raise ValueError(f"method base is not trained: set steps=0 instead of {self.steps}")
        if self.group_size == 1 and self.method in ("grpo", "s_grpo", "t_spmo"):
            raise ValueError(f"{self.method} compares the completions of a group: set group_size to 2 or more instead of 1")
        if self.method == "s_grpo":
            rule = self.selector == "rule"
            if rule and (self.cutoff is None or self.keep_probability is None or self.token_share is not None):
                raise ValueError("S-GRPO's rule needs cutoff and keep_probability, and no token_share")
            if not rule and self.token_share is None:
                raise ValueError(f"selector {self.selector} needs token_share")
            limit = self.max_new_tokens or completion_limit(self.task, self.digits)
            if rule and self.cutoff is not None and self.cutoff > limit:
                raise ValueError(f"cutoff {self.cutoff} is over the {limit} tokens a completion can have: lower the cutoff")
        if self.method == "ppo" and self.gae_lambda is None:
            raise ValueError("PPO needs gae_lambda")
        for task, name in _FIELD_OF_A_TASK.items():
            if task != self.task and getattr(self, name) is not None:
                raise ValueError(f"{name} is a setting of task {task}: leave it out for {self.task}")
        if self.reward is not None:
            load_reward(self.reward)
        self.build_method()  # raises for values that the method itself refuses
        return self

    @property
    def canonical(self) -> str:
        """The config as JSON with sorted keys. Fields that are not set are left out, so that a new field changes no text."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True, separators=(",", ":"))

    @property
    def identity(self) -> dict[str, Any]:
        """The part of the config that the run id covers."""
        values = self.model_dump(mode="json", exclude_none=True, exclude=_NO_PART)
        values |= {name: type(self).model_fields[name].default for name in MEMORY_FIELDS}
        if Path(self.model_path).resolve() == NANO_BASE:
            values["model"] = "nano"
        elif is_local(self.model):
            del values["model"]
        return values

    @property
    def run_id(self) -> str:
        """16 hex digits over the config's identity, the base weights, the task's content and the files of own code."""
        config = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        parts = [config, base_fingerprint(self.model, self.revision), self.load_task().version]
        parts += [str(code["sha256"]) for code in self.user_code().values()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def user_code(self) -> dict[str, dict[str, str | None]]:
        """Name, file, sha256 and signature of the reader's own reward and rule, under ``reward`` and ``rule``."""
        own = {"reward": self.reward, "rule": self.method if is_import_path(self.method) else None}
        return {name: describe(text, name) for name, text in own.items() if text is not None}

    @property
    def model_path(self) -> str:
        """What ``from_pretrained`` is given."""
        return str(NANO_BASE) if self.model == "nano" else self.model

    def load_task(self) -> Task:
        """The task that this run trains and evaluates on."""
        options: dict[str, dict[str, Any]] = {
            "word_problems": {"asides": self.asides},
            "multiplication": {"digits": self.digits},
            "svamp": {"source": self.svamp_source},
            "jsonl": {"source": self.data},
        }
        task = self._put(get_task(self.task, **options[self.task]))
        if self.reward:
            task = replace(task, reward=load_reward(self.reward))
        return task if self.train_items is None else replace(task, train=task.train[: self.train_items])

    def _put(self, task: Task) -> Task:
        """The task under this run's prompt template."""
        return task if self.prompt_template is None else with_template(task, self.prompt_template, self.model_path, self.revision)

    def side_tasks(self) -> dict[str, Task]:
        """What a generated task is evaluated on besides itself, judged by right answers; nothing where ``extra_splits`` is "never".

        other_task is the other generated task: it shows what training on one costs the other. longer_numbers is the same task with
        longer numbers than any trained on.
        """
        found: dict[str, Task] = {}
        if self.extra_splits == "never":
            return found
        if self.task == "word_problems":
            found["other_task"] = get_task("multiplication", digits=self.digits)
            found["longer_numbers"] = get_task("word_problems", asides=self.asides, longer_numbers=True)
        if self.task == "multiplication":
            found["other_task"] = get_task("word_problems", asides="after")
            if self.digits < 4:
                found["longer_numbers"] = get_task("multiplication", digits=self.digits + 1)
        return {name: self._put(task) for name, task in found.items()}

    def build_method(self):
        """The credit rule of this run, or None for ``base``."""
        shared = {"ddof": self.ddof, "eps": self.eps, "denominator": self.denominator}
        if self.selector == "all_and_branches":
            return BranchGRPO(self.ddof, self.eps)
        if self.method == "grpo":
            return GRPO(**shared)
        if self.method == "s_grpo" and self.selector != "rule":
            return SelectedGRPO(self.selector, self.token_share, **shared)
        if self.method == "s_grpo":
            return SGRPO(self.cutoff, self.keep_probability, self.max_kept_tokens, **shared)
        if self.method == "t_spmo":
            return TSPMO(denominator=self.denominator)
        if self.method == "ppo":
            return PPO(lam=self.gae_lambda, denominator=self.denominator)
        if is_import_path(self.method):
            return OwnRule(f"method {self.method}", load_rule(self.method), self.method.partition(":")[0])
        return None
