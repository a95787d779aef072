"""Prompt templates as data: how a question is put to a model, and which strings end its answer besides EOS.

A mismatched template makes any later gain look large, so the base is measured under each (replication/prompting.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from replication.base_files import readable
from replication.errors import UserError
from replication.tasks.problem import Problem, Task, content_version


@dataclass(frozen=True)
class Template:
    """``text`` with ``{question}`` in it; None: the chat template that the model's tokenizer brings along."""

    text: str | None
    stop_strings: tuple[str, ...] = ()


#: A base model answers and then asks itself the next question; the line break is part of the template, not of an answer.
QUESTION_ANSWER = Template("Question: {question}\nAnswer:", ("\nQuestion:", "\n\n"))
TEMPLATES = {
    "plain": Template("{question}\n", ("\n\n",)),
    "question_answer": QUESTION_ANSWER,
    "chat": Template(None),  # what ends a turn is read off the tokenizer's template
}


def question_of(problem: Problem) -> str:
    """The bare question of a problem whose prompt has the tasks' own form, question and answer."""
    before, after = QUESTION_ANSWER.text.split("{question}")
    if not (problem.prompt.startswith(before) and problem.prompt.endswith(after)):
        raise UserError(f"problem {problem.id} is not put as question and answer: leave prompt_template out for its task")
    return problem.prompt[len(before) : -len(after)]


@lru_cache(maxsize=8)
def with_template(task: Task, name: str, model_path: str, revision: str | None = None) -> Task:
    """The task with each question put by a template; ids stay, so that items can be compared across templates.

    Args:
        task: prompts in the tasks' own form.
        name: of TEMPLATES.
        model_path, revision: whose tokenizer has the chat template; read for ``chat`` alone.

    Raises:
        UserError: the tokenizer cannot be read or has no chat template.
    """
    template = TEMPLATES[name]
    stop_strings = template.stop_strings
    if template.text is None:
        tokenizer = _tokenizer(model_path, revision)
        stop_strings = _end_of_turn(tokenizer)

    def put(problem: Problem) -> Problem:
        question = question_of(problem)
        if template.text is None:
            turn = [{"role": "user", "content": question}]
            return replace(problem, prompt=tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        return replace(problem, prompt=template.text.format(question=question))

    def all_put(problems: Sequence[Problem]) -> tuple[Problem, ...]:
        return tuple(map(put, problems))

    splits = {split: all_put(getattr(task, split)) for split in ("train", "validation", "test", "held_out")}
    return replace(task, **splits, version=content_version(*splits.values()), stop_strings=stop_strings)


@lru_cache(maxsize=2)
def _tokenizer(path: str, revision: str | None):
    from transformers import AutoTokenizer

    try:
        with readable(path) as (name, gguf):
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, **gguf)
    except Exception as error:  # of any kind: the readers of tokenizers and GGUF trust what a file says
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"cannot read the tokenizer of {path!r} for its chat template: {reason}") from None
    tokenizer.name_or_path = path
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {path!r} has no chat template: choose another prompt_template")
    return tokenizer


def _end_of_turn(tokenizer) -> tuple[str, ...]:
    """What the chat template writes after an answer."""
    marker = "ANSWER"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker}]
    end = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(marker)[2].strip()
    return (end,) if end else ()
