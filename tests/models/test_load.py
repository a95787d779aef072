"""Loading a base: what is wrong with it is said in one line, dropout is off, any id of the list ends a completion."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import make_base, tiny_config, tiny_tokenizer
from torch import nn
from transformers import PreTrainedModel

from replication.errors import UserError
from replication.models.load import load_base, load_policy, resolve_device


@pytest.fixture
def base(random_base: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(random_base, tmp_path / "base")


def changed_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "there is no such folder"),
    "only pickled weights": (only_pickle, "no file named model.safetensors"),
    "truncated weights": (truncate, "incomplete metadata"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "header too small"),
    "a tensor missing": (
        lambda folder: changed_weights(folder, lambda w: w.pop("model.norm.weight")),
        "its weights lack model.norm.weight",
    ),
    "a tensor of another shape": (
        lambda folder: changed_weights(folder, lambda w: w.update({"model.norm.weight": torch.ones(5)})),
        "ignore_mismatched_sizes",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "a torn config": (lambda folder: (folder / "config.json").write_text('{"model_type":'), "not a valid JSON file"),
    "a config of no model": (lambda folder: (folder / "config.json").write_text("[]"), "must be a mapping"),
    "an unknown architecture": (lambda folder: (folder / "config.json").write_text('{"model_type": "unheard"}'), "unheard"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "its tokenizer is empty"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_base_that_cannot_be_read_is_named_in_one_line(base, fault):
    """transformers fills missing weights with random numbers and a missing tokenizer with an empty one, and only warns."""
    breaking, message = BROKEN[fault]
    breaking(base)
    with pytest.raises(UserError) as error:
        load_base(str(base))
    text = str(error.value)
    assert text.startswith(f"cannot load the model {str(base)!r}: ") and text.endswith("--set model=...)")
    assert message in text and "\n" not in text


def test_a_name_that_is_not_cached_is_a_user_error_offline():
    with pytest.raises(UserError, match="cannot load the model 'nobody/nothing'.*a name on the Hub"):
        load_base("nobody/nothing")


def test_without_a_gpu_asking_for_one_is_a_user_error(monkeypatch, random_base):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(UserError, match=f"device={device}, but torch sees no GPU here: set device=cpu or device=auto"):
            load_policy(tiny_config(random_base, device=device))
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("change", [{"lora_targets": ("no_such_module",)}, {"lora_layers": (7,)}], ids=str)
def test_an_adapter_that_does_not_fit_is_a_user_error(random_base, change):
    with pytest.raises(UserError, match="the adapter does not fit the model") as error:
        load_policy(tiny_config(random_base, **change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_all_dropout_is_off_in_every_family(tmp_path, family):
    """Each family has its own names for it, and one that got another's was refused with a traceback."""
    if family == "qwen2":
        folder = make_base(tmp_path / "base", attention_dropout=0.4)
    else:
        model = tiny.tiny_gpt2()
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            setattr(model.config, name, 0.4)
        model.save_pretrained(folder := tmp_path / "base")
        tiny_tokenizer().save_pretrained(folder)
    assert "0.4" in (folder / "config.json").read_text()
    model, _ = load_base(str(folder))
    assert not model.training and {m.p for m in model.modules() if isinstance(m, nn.Dropout)} <= {0.0}
    tokens = torch.arange(4, 18).reshape(2, 7)
    with torch.no_grad():
        calm = model(tokens).logits
        torch.testing.assert_close(model.train()(tokens).logits, calm, rtol=0, atol=0)


def test_every_id_of_the_list_ends_a_completion(tmp_path):
    own = tiny_tokenizer().eos_token_id
    for given, ids in ([own, 7, 9], (7, 9, own)), (7, (7, own)), (None, (own,)):
        folder = make_base(tmp_path / str(given), eos_token_id=given)
        policy = load_policy(tiny_config(folder, "base"))
        assert policy.eos_token_ids == tuple(sorted(ids))
        assert policy.pad_token_id == tiny_tokenizer().pad_token_id


def test_a_base_that_never_ends_is_refused(base):
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        content = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**content, "eos_token_id": None, "eos_token": None}))
    with pytest.raises(UserError, match="names an end-of-sequence token"):
        load_policy(tiny_config(base, "base"))


@pytest.mark.parametrize(
    ("changes", "count"), [({}, 8), ({"lora_layers": (1,)}, 4), ({"lora_targets": ("q_proj", "k_proj", "down_proj")}, 12)]
)
def test_the_adapter_is_where_the_config_says(random_base, changes, count):
    config = tiny_config(random_base, **changes)
    policy = load_policy(config)
    assert len(policy.trainable) == count and list(policy.trainable) == sorted(policy.trainable)
    for name, parameter in policy.trainable.items():
        assert any(target in name for target in config.lora_targets)
        assert config.lora_layers is None or ".layers.1." in name
        assert parameter.dtype == torch.float32 and config.lora_rank in parameter.shape
        assert ("lora_B" in name) == bool((parameter == 0).all()), "it starts as the base"
    scales = {m.scaling["default"] for m in policy.model.modules() if hasattr(m, "lora_A")}
    assert scales == {config.lora_alpha / config.lora_rank}


def test_adapters_start_by_the_seed_alone(random_base):
    def start(**changes) -> list[torch.Tensor]:
        torch.rand(5)  # the global generator has no say
        return list(load_policy(tiny_config(random_base, **changes)).trainable.values())

    here, again, other, method = start(), start(), start(seed=1), start(kind="t_spmo")
    assert all(torch.equal(a, b) for a, b in zip(here, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(here, method, strict=True)), "methods start from the same adapter"
    assert any(not torch.equal(a, b) for a, b in zip(here, other, strict=True))


def test_the_frozen_weights_take_the_dtype_of_the_config_and_adapters_float32(random_base):
    policy = load_policy(tiny_config(random_base, dtype="bfloat16"))
    dtypes = {parameter.dtype for name, parameter in policy.model.named_parameters() if name not in policy.trainable}
    assert dtypes == {torch.bfloat16} and {p.dtype for p in policy.trainable.values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["base", "grpo", "full"])
def test_the_reference_is_the_base_whatever_became_of_the_policy(random_base, kind):
    policy = load_policy(tiny_config(random_base, kind))
    plain, _ = load_base(str(random_base))
    tokens = torch.arange(4, 24).reshape(2, 10)
    with torch.no_grad():
        for parameter in policy.trainable.values():
            parameter.add_(0.5)
        expected = plain(tokens).logits
        with policy.reference() as base:
            torch.testing.assert_close(base(tokens).logits, expected, rtol=0, atol=0)
        assert (kind == "base") == torch.equal(policy.model(tokens).logits, expected)
    with policy.reference() as base:
        assert not base(tokens).logits.requires_grad
    assert policy.model(tokens).logits.requires_grad == (kind != "base")


def test_decoding_leaves_out_what_ends_and_pads(random_base):
    policy = load_policy(tiny_config(random_base, "base"))
    tokens = policy.encode(" We use 3 and 4.")
    tokenizer = policy.tokenizer
    assert (
        policy.decode([*tokens, tokenizer.eos_token_id]) == policy.decode([*tokens, tokenizer.pad_token_id]) == " We use 3 and 4."
    )


@pytest.mark.parametrize("release", ["5.23", "5.0"])
def test_activations_are_recomputed_under_every_release_of_transformers_5(random_base, monkeypatch, release):
    """Only the newest one knows activation_checkpointing_enable: a run under an older one ended in an AttributeError."""

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None):
        self._activation_checkpointing_enable(gradient_checkpointing_kwargs)

    if release == "5.0":
        monkeypatch.delattr(PreTrainedModel, "activation_checkpointing_enable")
        monkeypatch.setattr(PreTrainedModel, "gradient_checkpointing_enable", gradient_checkpointing_enable)
    policy = load_policy(tiny_config(random_base, activation_checkpointing=True))
    assert any(getattr(module, "gradient_checkpointing", False) for module in policy.model.modules())
