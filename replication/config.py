"""One frozen, flat config for a run; profiles that fill it in; the run id that names it.

Marks in the descriptions say how sure we are that a value is the paper's: [P] stated in the paper's abstract, [S] second-hand
descriptions of its method section, [R] our reconstruction where the text at hand is silent.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from replication.errors import UserError

if TYPE_CHECKING:
    from replication.tasks import Task

METHODS = ("base", "grpo", "s_grpo", "t_spmo")
TASKS = ("word_problems", "multiplication", "svamp")
PROFILES = ("smoke", "nano", "paper")
#: The one model that is shipped with the repository; everything else is a folder or a name on the Hub.
NANO_BASE = Path(__file__).resolve().parent.parent / "data" / "nano-base"

_DENOMINATORS = {
    "base": ("completion",),
    "grpo": ("completion", "group_tokens"),
    "s_grpo": ("kept", "completion"),
    "t_spmo": ("group", "transitions"),
}
_SELECTORS = {
    "base": ("none",),
    "grpo": ("all",),
    "s_grpo": ("rule", "random", "earliest", "latest", "entropy"),
    "t_spmo": ("trie",),
}
#: Fields that only one method reads: elsewhere they must stay unset, so that equal runs have equal configs.
_OWN_FIELDS = {
    "s_grpo": ("cutoff", "keep_probability", "max_kept_tokens", "token_share"),
    "t_spmo": ("replay_successes", "replay_failures"),
}


class ExperimentConfig(BaseModel):
    """Everything that decides the outcome of one run; anything unknown is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    profile: Literal["smoke", "nano", "paper"] = Field(description="name of the profile the run belongs to")
    task: Literal["word_problems", "multiplication", "svamp"] = Field(description="task trained and evaluated on")
    asides: Literal["none", "before", "after"] | None = Field(
        None, description="where the chat of a word problem's answer stands; default for word_problems: after (that task only) [R]"
    )
    digits: int = Field(2, ge=1, le=6, description="digits of each factor (multiplication only); 3 in the paper [S]")
    svamp_source: str | None = Field(None, description="path to the official SVAMP.json; none = download from the Hub")
    model: str = Field("nano", min_length=1, description='"nano", a folder, or a name on the Hub; Qwen2-1.5B in the paper [P]')
    prompt_template: Literal["plain", "question_answer", "chat"] | None = Field(
        None, description="how a question is put to the model (replication/tasks/prompts.py); none = the task's own [R]"
    )
    revision: str | None = Field(None, description="commit, tag or branch on the Hub; none = its main branch")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype of the frozen weights; adapters are float32")
    method: Literal["base", "grpo", "s_grpo", "t_spmo"] = Field(description="base = evaluation only")
    seed: int = Field(0, ge=0, description="the one seed; all streams are derived from it")

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
    lora_layers: tuple[int, ...] | None = Field(None, description="layers with an adapter; none = all [R]")

    ddof: Literal[0, 1] = Field(1, description="of the standard deviation in the advantage [R]")
    eps: float = Field(1e-4, ge=0, description="added to that standard deviation [R]")
    denominator: Literal["completion", "group_tokens", "kept", "group", "transitions"] = Field(
        description="what a token's weight is divided by; default: completion, kept (S-GRPO), group (T-SPMO) [R]"
    )
    beta: float = Field(0.0, ge=0, description="weight of the KL term [R]")
    l2: float = Field(0.0, ge=0, description="lambda, weight of the squared norm of the adapter [R]")
    selector: Literal["none", "all", "rule", "random", "earliest", "latest", "entropy", "trie"] = Field(
        description="which tokens are credited; default by method: all, rule (S-GRPO), trie (T-SPMO); the others are controls "
        "that run as method s_grpo [R]"
    )
    token_share: float | None = Field(None, gt=0, le=1, description="share of tokens for random, earliest, latest, entropy [R]")
    cutoff: int | None = Field(None, ge=0, description="alpha of S-GRPO: earlier positions are always kept [R]")
    keep_probability: float | None = Field(None, ge=0, le=1, description="P of S-GRPO: chance of a later position to be kept [R]")
    max_kept_tokens: int | None = Field(None, ge=1, description="k of S-GRPO; none = no limit [R]")
    replay_successes: int | None = Field(None, ge=0, description="T-SPMO: restarts from successful completions per group [R]")
    replay_failures: int | None = Field(None, ge=0, description="T-SPMO: restarts from failed completions per group [R]")

    scoring: Literal["packed", "dense"] = Field("packed", description="how log-probs are computed; the values are the same")
    scoring_tokens: int = Field(16384, ge=64, description="tokens scored with a graph at a time; bounds memory, not the result")
    rollout_rows: int = Field(256, ge=1, description="completions sampled at a time; bounds memory, not the result")
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?|auto)$", description="cpu, cuda or auto")

    threads: int = Field(1, ge=1, description="CPU threads of a run: sums in float32 depend on it, so it belongs to the config")

    eval_every: int = Field(25, ge=1, description="steps between evaluations on the validation split")
    eval_items: int = Field(200, ge=1, description="validation items per evaluation (also train and held-out items at the end)")
    test_items: int = Field(300, ge=1, description="test items, evaluated once at the end")
    eval_batch_size: int = Field(100, ge=1, description="fixed, so that padding never changes between evaluations")
    checkpoint_every: int = Field(25, ge=1, description="steps between checkpoints: the most a kill can cost")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("method") not in METHODS:
            return values
        values = dict(values)
        if values.get("task") == "word_problems" and values.get("asides") is None:
            values["asides"] = "after"
        for name, choices in (("denominator", _DENOMINATORS), ("selector", _SELECTORS)):
            if values.get(name) is None:
                values[name] = choices[values["method"]][0]
        if values["method"] == "s_grpo" and values["selector"] != "rule":
            # A control replaces the rule: what a profile says about the rule does not apply to it.
            values |= dict.fromkeys(("cutoff", "keep_probability", "max_kept_tokens"))
        return values

    @model_validator(mode="after")
    def _fields_fit_the_method(self) -> ExperimentConfig:
        for name, choices in (("denominator", _DENOMINATORS), ("selector", _SELECTORS)):
            if getattr(self, name) not in choices[self.method]:
                allowed = " or ".join(choices[self.method])
                raise ValueError(f"{name} {getattr(self, name)} does not exist for {self.method}: set it to {allowed}")
        for method, fields in _OWN_FIELDS.items():
            for name in fields:
                if method != self.method and getattr(self, name) is not None:
                    raise ValueError(f"{name} is a setting of {method} alone: leave it out for {self.method}")
        if self.method == "base" and self.steps:
            raise ValueError(f"method base is not trained: set steps=0 instead of {self.steps}")
        if self.method == "s_grpo":
            rule = self.selector == "rule"
            if rule and (self.cutoff is None or self.keep_probability is None or self.token_share is not None):
                raise ValueError("S-GRPO's rule needs cutoff and keep_probability, and no token_share")
            if not rule and self.token_share is None:
                raise ValueError(f"selector {self.selector} needs token_share")
            # SVAMP is not looked at here: building a config must not download. Nor is a tokenizer: no template changes the limit.
            limit = self.max_new_tokens or (None if self.task == "svamp" else self._bare().load_task().max_new_tokens)
            if rule and limit is not None and self.cutoff > limit:
                raise ValueError(f"cutoff {self.cutoff} is over the {limit} tokens a completion can have: lower the cutoff")
        if self.asides is not None and self.task != "word_problems":
            raise ValueError(f"asides is a setting of task word_problems: leave it out for {self.task}")
        if self.svamp_source is not None and self.task != "svamp":
            raise ValueError(f"svamp_source is a setting of task svamp: leave it out for {self.task}")
        self.build_method()  # raises for values that the method itself refuses
        return self

    @property
    def canonical(self) -> str:
        """The config as JSON with sorted keys, without what is not set: equal configs, equal text, also when fields are added."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True, separators=(",", ":"))

    @property
    def run_id(self) -> str:
        """16 hex digits over the canonical config, the base weights and the task's content."""
        parts = [self.canonical, base_fingerprint(self.model, self.revision), self.load_task().version]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def model_path(self) -> str:
        """What ``from_pretrained`` is given."""
        return str(NANO_BASE) if self.model == "nano" else self.model

    def load_task(self, name: str | None = None):
        """The task of this run, or another one (``name``) with this run's options."""
        from replication.tasks import get_task

        name = name or self.task
        words = {"asides": self.asides or "after"}
        options = {"word_problems": words, "multiplication": {"digits": self.digits}, "svamp": {"source": self.svamp_source}}
        return self._put(get_task(name, **options.get(name, {})))

    def _bare(self) -> ExperimentConfig:
        """This config with the task's own prompts."""
        return self if self.prompt_template is None else self.model_copy(update={"prompt_template": None})

    def _put(self, task: Task) -> Task:
        """The task under this run's prompt template."""
        from replication.tasks.prompts import with_template

        return task if self.prompt_template is None else with_template(task, self.prompt_template, self.model_path, self.revision)

    def other_task(self) -> Task | None:
        """The other generated task: what training on one costs the other."""
        other = {"word_problems": "multiplication", "multiplication": "word_problems"}.get(self.task)
        return None if other is None else self.load_task(other)

    def longer_task(self) -> Task | None:
        """The generated task once more with numbers longer than any trained on; its ``test`` is what counts."""
        from replication.tasks import get_task

        if self.task == "word_problems":
            return self._put(get_task("word_problems", asides=self.asides, longer_numbers=True))
        if self.task == "multiplication" and self.digits < 4:
            return self._put(get_task("multiplication", digits=self.digits + 1))
        return None

    def build_method(self):
        """The credit rule of this run, or None for ``base``."""
        from replication.algorithms import GRPO, SGRPO, TSPMO, SelectedGRPO

        shared = {"ddof": self.ddof, "eps": self.eps, "denominator": self.denominator}
        if self.method == "grpo":
            return GRPO(**shared)
        if self.method == "s_grpo" and self.selector != "rule":
            return SelectedGRPO(self.selector, self.token_share, **shared)
        if self.method == "s_grpo":
            return SGRPO(self.cutoff, self.keep_probability, self.max_kept_tokens, **shared)
        if self.method == "t_spmo":
            return TSPMO(denominator=self.denominator)
        return None

    def command(self, out: str | Path) -> str:
        """The command line that makes this very run: the profile's config plus each field that differs from it."""
        default = load_profile(self.profile, task=self.task, method=self.method, seed=self.seed).model_dump(mode="json")
        words = ["python", "-m", "replication", "run", "--profile", self.profile, "--task", self.task]
        words += ["--method", self.method, "--seed", str(self.seed)]
        for name, value in self.model_dump(mode="json").items():
            if value != default[name]:
                words += ["--set", f"{name}={json.dumps(value)}"]
        return shlex.join([*words, "--out", str(out)])


def make_config(**values: Any) -> ExperimentConfig:
    """An ExperimentConfig, with what is wrong said in one line.

    Raises:
        UserError: naming every field that is unknown or impossible.
    """
    try:
        return ExperimentConfig(**values)
    except ValidationError as error:
        raise UserError(f"bad config: {_one_line(error)}") from None


def _one_line(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            parts.append(f"{where} is not a setting (known: {', '.join(ExperimentConfig.model_fields)})")
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = f" (is {item['input']!r})" if where else ""
            parts.append(f"{where}: {message}{shown}" if where else message)
    return "; ".join(parts)


@functools.cache
def _profile_file(name: str) -> dict[str, Any]:
    if name not in PROFILES:
        raise UserError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    return yaml.safe_load(resources.files("replication").joinpath("profiles", f"{name}.yaml").read_text("utf-8"))


def load_profile(
    name: str, *, task: str | None = None, method: str | None = None, seed: int = 0, **overrides: Any
) -> ExperimentConfig:
    """The config of one run under a profile.

    The profile's common values come first, then those of the task, of the method, of the two together, then ``overrides``.

    Args:
        name: smoke, nano or paper.
        task, method: default to the first of the profile's tasks, and to s_grpo.
        seed: the seed of the run.
        overrides: any field of ExperimentConfig.

    Raises:
        UserError: for an unknown profile or field, or an impossible value.
    """
    profile = _profile_file(name)
    task = task or next(iter(profile["tasks"]))
    method = method or "s_grpo"
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    own = profile["methods"].get(method) or {}
    values: dict[str, Any] = {"profile": name, "task": task, "method": method, "seed": seed, **profile["common"]}
    values |= profile["tasks"].get(task) or {}
    values |= {key: value for key, value in own.items() if key != "tasks"}
    values |= own.get("tasks", {}).get(task) or {}
    return make_config(**(values | overrides))


def profile_plan(name: str) -> dict[str, Any]:
    """The ``plan`` section of a profile: seeds, tasks and grids of the ablations."""
    return _profile_file(name)["plan"]


@functools.lru_cache(maxsize=8)
def _folder_fingerprint(folder: Path, stamps: tuple) -> str:
    digest = hashlib.sha256()
    for name, *_ in stamps:
        digest.update(name.encode())
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def base_fingerprint(model: str, revision: str | None) -> str:
    """What the run id knows of the base: the bytes of a local folder's weights, config and tokenizer, or the Hub's name@revision.

    Raises:
        UserError: if the shipped base is not there or has no weights.
    """
    folder = NANO_BASE if model == "nano" else Path(model)
    if not folder.is_dir():
        if model == "nano":
            raise UserError(f"the shipped base is missing: {folder} (restore it with git checkout -- data/nano-base)")
        return f"{model}@{revision or 'main'}"
    # Older tokenizers lie in vocab.json and merges.txt, or in *.model.
    own = ("config.json", "vocab.json", "merges.txt")
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".md")
    files = [p for p in files if p.name in own or "token" in p.name or p.suffix in (".safetensors", ".model")]
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"no *.safetensors weights in {folder}: point MODEL at a folder that from_pretrained can read")
    stamps = tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return _folder_fingerprint(folder, stamps)
