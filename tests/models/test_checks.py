"""What is asked of a model before a run begins: each layout of a checkpoint either works or gets one line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_runs import make_base, noisy_rewards, steps, tiny_config, tiny_tokenizer

from replication import train
from replication.__main__ import main
from replication.algorithms import every_token
from replication.config import ExperimentConfig
from replication.errors import UserError
from replication.measure import measure_prompts
from replication.models.checks import check_decoding, check_sizes
from replication.models.load import load_base, load_policy
from replication.rollout import generate
from replication.scoring import token_log_probs
from replication.tasks import Task

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZE |= {"vocab_size": 64, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}

#: Architectures with layers that keep a state besides keys and values, or instead of them.
HYBRID = {
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "Qwen3_5": {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16, **LINEAR},
    "GraniteMoeHybrid": {
        "layer_types": ["mamba", "attention"], "num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 32,
        **MAMBA,
    },
    "Jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 4,
        "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "FalconH1": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_ssm": 32, "mamba_d_state": 8, "head_dim": 8},
}  # fmt: skip
#: Architectures that transformers has no sdpa attention for.
EAGER = {
    "Bloom": {"n_layer": 2, "n_head": 4},
    "GPTNeo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 8},
    "GptOss": {
        "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
    },
}  # fmt: skip


def built(family: str, **changes) -> torch.nn.Module:
    """A model of a family with random weights, wide enough for a wrong state to change log-probs by tenths."""
    config_class = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config_class(**{**SIZE, **changes})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.2)
    return model


def saved(family: str, folder: Path, **changes) -> Path:
    tokenizer = tiny_tokenizer()
    model = built(family, **{"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **changes})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def base(random_base: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(random_base, tmp_path / "base")


@pytest.mark.parametrize("family", [*HYBRID, *EAGER])
def test_what_is_sampled_is_what_is_scored(family):
    """Hybrid models crashed in the first rollout: no layer with a state could be cut to rows the way keys and values are."""
    model = built(family, **{**HYBRID, **EAGER}[family])
    check_decoding(model)
    prompts = [list(range(5, 5 + length)) for length in (9, 4, 6)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    groups = generate(
        model, prompts, group_size=3, max_new_tokens=12, temperature=1.0, eos_token_ids=[2], pad_token_id=0, generators=generators
    )
    completions = [[sample.tokens for sample in group] for group in groups]
    sampled = torch.tensor([value for group in groups for sample in group for value in sample.log_probs])
    with torch.no_grad(), pytest.warns(UserWarning, match="densely"):
        scored = token_log_probs(model, prompts, completions, [every_token(group) for group in completions])
    torch.testing.assert_close(sampled, scored, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["Lfm2", "Bloom"])
def test_a_run_of_a_hybrid_and_of_an_eager_model(family, tmp_path, monkeypatch):
    noisy_rewards(monkeypatch)
    targets = {"Lfm2": ("q_proj", "v_proj", "in_proj"), "Bloom": ("query_key_value",)}[family]
    folder = saved(family, tmp_path / "model", **{**HYBRID, **EAGER}[family])
    model, _ = load_base(str(folder))
    assert model.config._attn_implementation == {"Lfm2": "sdpa", "Bloom": "eager"}[family]
    assert train.run(tiny_config(folder, lora_targets=targets, steps=2), tmp_path / "run").status == "done"
    assert all(row["grad_norm"] > 0 for row in steps(tmp_path / "run"))


@pytest.mark.parametrize("family", ["Mamba", "Rwkv", "XLSTM"])
def test_a_model_that_cannot_be_sampled_from_is_refused_at_loading(family, tmp_path):
    """These take no such cache, or no padding, or no position ids, and would go on with other log-probs than those scored."""
    if family == "XLSTM":
        with torch.random.fork_rng(devices=[]):
            model = transformers.xLSTMForCausalLM(transformers.xLSTMConfig(**{**SIZE, "num_heads": 4}))
    else:
        model = built(family)
    with pytest.raises(UserError, match="sampl.*choose another model") as error:
        check_decoding(model)
    assert "\n" not in str(error.value) and model.config.model_type in str(error.value)


def test_a_vision_checkpoint_trains_its_text_part_alone(tmp_path, monkeypatch):
    """Gemma 3's text config lies inside the config: bookkeeping died on it, and the vision tower got an adapter of no use."""
    noisy_rewards(monkeypatch)
    tokenizer = tiny_tokenizer()
    text = {**SIZE, "vocab_size": len(tokenizer), "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
    text |= {"attention_dropout": 0.5}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**vision, "patch_size": 14}, mm_tokens_per_image=1, eos_token_id=tokenizer.eos_token_id
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    policy = load_policy(tiny_config(tmp_path / "model"))
    assert len(policy.trainable) == 8 and not any("vision" in name for name in policy.trainable)
    assert policy.model.config.text_config.attention_dropout == 0.0
    assert train.run(tiny_config(tmp_path / "model", steps=2), tmp_path / "run").status == "done"
    assert all(row["grad_norm"] > 0 for row in steps(tmp_path / "run"))


def test_a_prompt_with_ids_outside_the_embedding_is_refused_before_any_work(tmp_path):
    """It was an IndexError in the middle of the first rollout."""
    folder = make_base(tmp_path / "base", vocab_size=40, eos_token_id=tiny_tokenizer().eos_token_id)
    with pytest.raises(UserError, match="the model's embedding has 40 rows") as error:
        train.run(tiny_config(folder), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run/metrics.jsonl").exists()
    with pytest.raises(UserError, match="the model's embedding has 40 rows"):
        measure_prompts("smoke", tmp_path / "prompts", model=str(folder), eval_items=2, max_new_tokens=4)


def few_problems(config: ExperimentConfig) -> Task:
    task = config.load_task()
    return replace(task, **{name: getattr(task, name)[:5] for name in ("train", "validation", "test", "held_out")})


def test_ids_that_no_prompt_uses_may_lie_outside_the_embedding(tmp_path):
    """Gemma 3's tokenizer has one id more than the model's embedding has rows."""
    folder = make_base(tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)  # a copy: that of the other tests stays as it is
    tokenizer.add_tokens(["<image_soft_token>"])
    tokenizer.save_pretrained(folder)
    config = tiny_config(folder, "base")
    check_sizes(load_policy(config), config, few_problems(config))


def test_prompt_and_limit_past_the_position_table_are_refused(tmp_path):
    folder = make_base(tmp_path / "base", max_position_embeddings=128)
    for kind, changes in (("grpo", {"max_new_tokens": 120}), ("t_spmo", {"max_new_tokens": 60, "replay_successes": 1})):
        with pytest.raises(UserError, match="more than the 128 positions of the model: lower max_new_tokens") as error:
            train.run(tiny_config(folder, kind, **changes), tmp_path / kind)
        assert "\n" not in str(error.value)
    fits = tiny_config(folder, "base", max_new_tokens=60)  # without replays
    check_sizes(load_policy(fits), fits, few_problems(fits))


def test_a_nan_among_the_weights_is_named_in_one_line(base):
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"its weight model\.layers\.1\.mlp\.up_proj\.weight has values that are not finite"):
        load_base(str(base))


def test_weights_beyond_the_range_of_float16_are_refused_there_alone(base):
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e6
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="not finite, maybe beyond the range of float16: set dtype=float32"):
        load_base(str(base), dtype=torch.float16)
    load_base(str(base), dtype=torch.bfloat16)


def test_a_missing_shard_is_named_in_one_line(tmp_path):
    folder = make_base(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    load_base(str(folder))
    shards[-1].unlink()
    with pytest.raises(UserError, match=f"cannot load the model .*{shards[-1].name}") as error:
        load_base(str(folder))
    assert "\n" not in str(error.value)


def test_two_eos_ids_both_end_a_completion(tmp_path):
    tokenizer = tiny_tokenizer()
    policy = load_policy(tiny_config(make_base(tmp_path / "base", eos_token_id=[tokenizer.eos_token_id, 17]), "base"))
    assert {17, tokenizer.eos_token_id} <= set(policy.eos_token_ids)
    samples = generate(
        policy.model, [policy.encode("What is 2*3?")], group_size=64, max_new_tokens=40, temperature=9.0,
        eos_token_ids=policy.eos_token_ids, pad_token_id=policy.pad_token_id, generators=[torch.Generator().manual_seed(0)],
    )  # fmt: skip
    ends = [sample.tokens[-1] for sample in samples[0] if not sample.truncated]
    assert 17 in ends and set(ends) <= set(policy.eos_token_ids)


@pytest.mark.parametrize("pad", ["none", "eos"])
def test_a_model_without_a_pad_token_or_whose_pad_is_its_eos_works(base, tmp_path, monkeypatch, pad):
    """Padding is masked, so that any id will do; a completion's own EOS is scored like every other token."""
    noisy_rewards(monkeypatch)
    eos = json.loads((base / "config.json").read_text())["eos_token_id"]
    eos = eos[0] if isinstance(eos, list) else eos
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        content = json.loads((base / name).read_text())
        content |= {"pad_token_id": None, "pad_token": None} if pad == "none" else {"pad_token_id": eos}
        (base / name).write_text(json.dumps(content))
    assert train.run(tiny_config(base, steps=2), tmp_path / "run").status == "done"
    assert all(row["grad_norm"] > 0 for row in steps(tmp_path / "run"))


def test_without_a_chat_template_the_chat_prompt_is_refused_and_the_others_work(random_base, tmp_path):
    with pytest.raises(UserError, match="has no chat template"):
        train.run(tiny_config(random_base, "base", prompt_template="chat"), tmp_path / "chat")
    assert train.run(tiny_config(random_base, "base", prompt_template="plain"), tmp_path / "plain").status == "done"


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything: be somebody else inside the block."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"])
def test_files_without_read_permission_are_named_in_one_line(random_base, capsys, name):
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o777)
        base = shutil.copytree(random_base, Path(parent) / "base")
        for path in (base, *base.iterdir()):
            path.chmod(0o755)
        (base / name).chmod(0)
        words = ["run", "--profile", "smoke", "--task", "multiplication", "--method", "base", "--seed", "0"]
        with as_nobody():
            with pytest.raises(UserError, match="cannot load the model"):
                load_base(str(base))
            assert main([*words, "--set", f"model={base}", "--out", f"{parent}/run"]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and name in error


def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes that a model was loaded, with which every measurement begins."""
    from replication.measure import credit, prompts

    seen: list[str] = []
    for module in (credit, prompts):
        monkeypatch.setattr(module, "load_policy", lambda config: seen.append(config.model))
    return seen


@pytest.mark.parametrize("command", ["diagnose", "prompts"])
def test_a_results_folder_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path, monkeypatch, capsys, command):
    seen = started(monkeypatch)
    (tmp_path / "file").write_text("")
    assert main([command, "--profile", "smoke", "--out", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err and not seen
