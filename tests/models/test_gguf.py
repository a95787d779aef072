"""A model in one GGUF file: read as data, the weights it holds, and one line for a file that cannot be read."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import make_base, noisy_rewards, steps, tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from replication import train
from replication.__main__ import main
from replication.errors import UserError
from replication.models.load import load_base, load_policy
from replication.tasks import get_task

gguf = pytest.importorskip("gguf")

#: Names of Qwen2's tensors in the Hugging Face format and in GGUF (llama.cpp's names).
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    name = name.replace("model.embed_tokens", "token_embd").replace("model.norm", "output_norm").replace("model.layers.", "blk.")
    for theirs, ours in LAYER.items():
        name = name.replace(theirs, ours)
    return name


def write_gguf(
    base: Path, path: Path, *, architecture: str = "qwen2", quantised: bool = False, change=lambda weights: None
) -> Path:
    """The Qwen2 of a folder as a GGUF file, in float32, or in Q8_0 where a row can be cut into blocks of 32."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    weights = {gguf_name(name): value.numpy() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    change(weights)
    for name, value in weights.items():
        if quantised and value.ndim == 2 and value.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("gguf") / "folder")


@pytest.fixture(scope="module")
def file(base: Path) -> Path:
    return write_gguf(base, base.parent / "tiny.gguf")


def test_a_gguf_file_is_the_model_that_it_was_made_of(base, file):
    (here, tokenizer), (there, other) = load_base(str(file)), load_base(str(base))
    tokens = torch.arange(4, 24).reshape(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(here(tokens).logits, there(tokens).logits, rtol=0, atol=1e-5)
    for problem in get_task("word_problems").train[:50]:
        ids = tokenizer(problem.prompt, add_special_tokens=False)["input_ids"]
        assert ids == other(problem.prompt, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == problem.prompt
    assert tokenizer.eos_token_id == other.eos_token_id


def test_quantised_weights_are_dequantised(base, tmp_path):
    model, _ = load_base(str(write_gguf(base, tmp_path / "tiny.Q8_0.gguf", quantised=True)))
    plain = AutoModelForCausalLM.from_pretrained(base)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"):
        original = plain.state_dict()[name].numpy()
        expected = torch.from_numpy(gguf.dequantize(gguf.quants.quantize(original, kind), kind))
        assert torch.equal(model.state_dict()[name], expected) and not torch.equal(expected, plain.state_dict()[name])


def test_a_run_on_a_gguf_file_notes_its_checksum_and_the_card_names_the_file(file, tmp_path, monkeypatch):
    noisy_rewards(monkeypatch)
    train.run(tiny_config(file), tmp_path / "run")
    assert [row["loss"] for row in steps(tmp_path / "run")] != [0, 0, 0, 0]
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["base_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    card = (tmp_path / "run/adapter/README.md").read_text()
    assert manifest["base_sha256"] in card and f"gguf_file={file.name!r}" in card and "fits the weights of the one file" in card
    usage = card.split("```python")[1].split("```")[0].replace("PATH OF THIS FOLDER", f"{tmp_path}/run/adapter")
    names: dict = {}
    exec(usage, names)
    tokens = torch.arange(4, 24).reshape(2, 10)
    with torch.no_grad():
        assert torch.isfinite(names["model"](tokens).logits).all()


def test_what_lies_beside_a_gguf_file_is_not_read(file, base, tmp_path):
    """transformers also reads tokenizer_config.json and generation_config.json of the folder, which no checksum covers."""
    folder = shutil.copytree(base, tmp_path / "models")
    shutil.copy(file, folder / "tiny.gguf")
    for name in ("tokenizer_config.json", "generation_config.json", "config.json", "tokenizer.json"):
        (folder / name).write_text("torn {")
    policy = load_policy(tiny_config(folder / "tiny.gguf", "base"))
    assert policy.tokenizer.name_or_path == policy.model.config._name_or_path == str(folder / "tiny.gguf")
    assert tiny_config(folder / "tiny.gguf").run_id == tiny_config(file).run_id, "the bytes are the identity"


def write_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


BROKEN = {
    "no file": lambda base, file, path: path,
    "a folder": lambda base, file, path: path.mkdir() or path,
    "empty": lambda base, file, path: write_bytes(path, b""),
    "a web page": lambda base, file, path: write_bytes(path, b"<!DOCTYPE html><html>Not found</html>"),
    "only its first word": lambda base, file, path: write_bytes(path, b"GGUF"),
    "of no version": lambda base, file, path: write_bytes(path, b"GGUF" + b"\xff" * 60),
    "no fields": lambda base, file, path: write_bytes(path, b"GGUF\x03\0\0\0" + bytes(16)),
    **{
        f"the first {share:.0%}": lambda base, file, path, share=share: write_bytes(
            path, file.read_bytes()[: int(share * file.stat().st_size)]
        )
        for share in (0.001, 0.01, 0.1, 0.5, 0.9, 0.999)
    },
    "an unsupported architecture": lambda base, file, path: write_gguf(base, path, architecture="grok"),
    "a tensor missing": lambda base, file, path: write_gguf(base, path, change=lambda w: w.pop("blk.1.attn_q.weight")),
    "a NaN": lambda base, file, path: write_gguf(base, path, change=lambda w: w["output_norm.weight"].fill(float("nan"))),
    "another shape": lambda base, file, path: write_gguf(
        base, path, change=lambda w: w.update({"output_norm.weight": w["output_norm.weight"][:7]})
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_gguf_file_that_cannot_be_read_is_named_in_one_line(base, file, tmp_path, fault):
    """Its reader trusts what a file says: a damaged one raises an IndexError, a KeyError, anything."""
    broken = BROKEN[fault](base, file, tmp_path / "broken.gguf")
    with pytest.raises(UserError) as error:
        load_base(str(broken))
    assert str(error.value).startswith(f"cannot load the model {str(broken)!r}: ") and "\n" not in str(error.value)


def test_without_the_package_the_line_says_what_to_install(file, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest))
    with pytest.raises(UserError, match="pip install"):
        load_base(str(file))


def test_the_command_line_takes_a_gguf_file(file, tmp_path, capsys):
    words = ["run", "--profile", "smoke", "--task", "multiplication", "--method", "base", "--seed", "0"]
    words += ["--set", "eval_items=2", "--set", "test_items=2", "--set", "max_new_tokens=4"]
    assert main([*words, "--set", f"model={file}", "--out", str(tmp_path / "run")]) == 0
    assert "typo.gguf" not in capsys.readouterr().err
    assert main([*words, "--set", f"model={tmp_path}/typo.gguf", "--out", str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert "typo.gguf" in error and error.count("\n") == 1 and not (tmp_path / "other").exists()
