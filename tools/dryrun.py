"""The paper profile from its first command to its report in minutes, offline, on a CPU: a test of the way, never evidence.

    python -m tools.dryrun --out DIR

A random two-layer Qwen2 stands in for the model and, where the official SVAMP.json is not given, made-up items of its schema
for the data. Everything else is the commands of `make paper` themselves. The numbers mean nothing, and no verdict counts them:
those of the paper's scale ask for the paper's model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from replication.errors import UserError
from replication.runs import atomic_write, make_folder

PROFILE = "paper"
#: What makes every run small. The rest of each config, and the plan itself, are the profile's own.
SETTINGS = {
    "device": "cpu", "steps": 2, "prompts_per_step": 8, "group_size": 8, "max_new_tokens": 32, "eval_every": 1, "eval_items": 6,
    "test_items": 8, "eval_batch_size": 8, "checkpoint_every": 1, "warmup_steps": 1, "token_budget": 2048,
}  # fmt: skip
NOTEBOOKS = ("10_full_vs_sparse", "11_token_fraction", "12_lora_rank", "13_learning_rate", "20_report")
COUNT = 1000
EOS = "<|endoftext|>"
#: How strongly the random model leans to digits and to EOS, in logits: all groups of an even one would tie.
LEANING = {"2": 7.0, "3": 7.0, "4": 7.0, "5": 7.0, "6": 7.0, "7": 7.0, "8": 7.0, EOS: 9.5}
_PEOPLE = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jo")
_THINGS = ("apples", "books", "coins", "eggs", "maps", "nuts", "pens", "shells", "stamps", "toys")
_KINDS: dict[str, tuple[Callable[[int, int], int], str, str]] = {
    "Addition": (lambda a, b: a + b, "+", "gets {b} more {thing}"),
    "Subtraction": (lambda a, b: a, "-", "gives away {b} {thing}"),
    "Multiplication": (lambda a, b: a * b, "*", "needs {b} times as many {thing}"),
    "Common-Division": (lambda a, b: a, "/", "shares the {thing} among {b} friends"),
}


def made_up_items() -> list[dict[str, Any]]:
    """Items with the keys, types, spellings and forgotten stops of the official file; their ids say that they are made up."""
    random = Random("dry run")
    items = []
    for index in range(COUNT):
        name, thing, kind = random.choice(_PEOPLE), random.choice(_THINGS), random.choice(list(_KINDS))
        a, b = random.randint(2, 9), random.randint(2, 9)
        answer, sign, event = _KINDS[kind]
        start = {"-": a + b, "/": a * b}.get(sign, a)
        items.append(
            {
                "ID": f"made-up-{index}",
                "Body": f"{name} has {start} {thing} and {event.format(b=b, thing=thing)}" + "." * bool(index % 3),
                "Question": f"How many {thing} is that on day {index}?",
                "Equation": f"( {start:.1f} {sign} {b:.1f} )",
                "Answer": float(answer(a, b)),
                "Type": "Common-Divison" if kind == "Common-Division" and index % 50 == 0 else kind,
            }
        )
    return items


def make_model(folder: Path, texts: Sequence[str]) -> None:
    """Save a random Qwen2 of two layers with a byte-level BPE tokenizer trained on ``texts``, as a model comes from the Hub.

    Its vector of every token shares a direction to which the output rows of digits and EOS lean.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(eos_token=EOS, pad_token=EOS, unk_token=EOS)
    tokenizer = tokenizer.train_new_from_iterator([list(texts)], vocab_size=600, show_progress=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.1,
    )  # fmt: skip
    config.dry_run = True
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
        shared = torch.ones(config.hidden_size)
        model.get_input_embeddings().weight.add_(shared)
        for token, logit in LEANING.items():
            # The last norm brings the shared direction back to a length of about 1 in each component.
            row = model.get_output_embeddings().weight[tokenizer.convert_tokens_to_ids(token)]
            row += logit / config.hidden_size * shared
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


#: That of Qwen2's instruct models, without its tools.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def prepare(out: Path, svamp: str | None = None) -> tuple[Path, str]:
    """The model's folder and the SVAMP file of a dry run; made where they are missing.

    Raises:
        UserError: the given file is not SVAMP.
    """
    from replication.tasks import get_task

    make_folder(out)
    if svamp is None:
        path = out / "made-up-svamp.json"
        atomic_write(path, json.dumps(made_up_items(), indent=1))
        svamp = str(path)
    problems = [*get_task("svamp", source=svamp).train, *get_task("multiplication", digits=3).train[:300]]
    folder = out / "model"
    if not (folder / "tokenizer.json").exists():
        make_model(folder, [problem.prompt for problem in problems])
    return folder, svamp


def steps(out: Path, model: Path, svamp: str, workers: int | None) -> list[list[str]]:
    """The commands of `make paper`, with what makes them small."""
    results = ["--profile", PROFILE, "--out", str(out)]
    settings = [f"{name}={value}" for name, value in ({"model": str(model)} | SETTINGS).items()]
    chosen = ["--svamp", svamp, *(word for setting in settings for word in ("--set", setting))]
    sweep = ["sweep", *results, "--seeds", "1", *chosen]
    sweep += ["--workers", str(workers)] if workers else []
    notebooks = ["notebooks", *results, *NOTEBOOKS, "--no-train"]
    return [["prompts", *results, *chosen], sweep, notebooks, ["report", *results]]


def run(out: Path, svamp: str | None = None, workers: int | None = None) -> int:
    """Every command after the other; stops at the first that fails, with its status.

    Raises:
        UserError: a verdict of the paper's scale came out as something else than "not run".
    """
    from replication.__main__ import main
    from replication.tables import read_tables

    model, svamp = prepare(out, svamp)
    for command in steps(out, model, svamp, workers):
        print(f"dry run: {command[0]}", file=sys.stderr)
        if status := main(command):
            return status
    verdicts = read_tables(out)["verdicts"]
    counted = verdicts[verdicts["verdict"] != "not run"]
    if len(counted):
        raise UserError(f"a dry run was taken for evidence: {', '.join(counted['claim'])}")
    print(f"dry run of the {PROFILE} profile: every command worked, {len(verdicts)} verdicts are not run, as they must be; {out}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.dryrun", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/local/dryrun"), metavar="DIR", help="its folder")
    parser.add_argument("--svamp", metavar="FILE", help="the official SVAMP.json (default: made-up items of its schema)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    options = parser.parse_args()
    try:
        sys.exit(run(options.out, options.svamp, options.workers))
    except UserError as error:
        sys.exit(f"error: {error}")
