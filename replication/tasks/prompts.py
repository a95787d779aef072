"""Prompt templates as data: how a question is put to a model, and which strings end its answer besides EOS.

A mismatched template makes any later gain look large, so the base is measured under each (replication/measure/prompts.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache

from replication.base_files import readable
from replication.errors import UserError, first_line
from replication.tasks.problem import Problem, Task, content_version


@dataclass(frozen=True)
class Template:
    """``text`` with ``{question}`` in it; None: the chat template that the model's tokenizer brings along."""

    text: str | None
    stop_strings: tuple[str, ...] = ()


#: A base model answers and then asks itself the next question: that question's marker ends the answer. A blank line does not,
#: since right answers hold blank lines, often before their first word.
NEXT_QUESTION = ("\nQuestion:",)
QUESTION_ANSWER = Template("Question: {question}\nAnswer:", NEXT_QUESTION)
TEMPLATES = {
    "plain": Template("{question}\n", NEXT_QUESTION),
    "question_answer": QUESTION_ANSWER,
    "chat": Template(None),  # what ends a turn is read off the tokenizer's template
}

#: What a template that prints the date prints: the day that Llama 3's own template falls back to.
TODAY = date(2024, 7, 26)
_DATE = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")
_ANOTHER = "choose another prompt_template"


def question_of(problem: Problem) -> str:
    """The question without its template: cut out of a prompt "Question: ... Answer:", for any other prompt ``meta["question"]``."""
    before, after = QUESTION_ANSWER.text.split("{question}")
    if not (problem.prompt.startswith(before) and problem.prompt.endswith(after)):
        if "question" in problem.meta:
            return problem.meta["question"]
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
        UserError: the tokenizer cannot be read or has no chat template, or its template cannot render a question or drops it.
    """
    template = TEMPLATES[name]
    stop_strings = template.stop_strings
    if template.text is None:
        tokenizer = _tokenizer(model_path, revision)
        stop_strings = _end_of_turn(tokenizer)

    def put(question: str) -> str:
        if template.text is None:
            return _rendered(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True)
        return template.text.format(question=question)

    def all_put(problems: Sequence[Problem]) -> tuple[Problem, ...]:
        questions = [question_of(problem) for problem in problems]
        prompts = [put(question) for question in questions]
        if len(set(prompts)) < len(set(questions)):
            raise UserError(f"the chat template of {model_path!r} gives different questions the same prompt: {_ANOTHER}")
        return tuple(replace(problem, prompt=prompt) for problem, prompt in zip(problems, prompts, strict=True))

    splits = {split: all_put(getattr(task, split)) for split in ("train", "validation", "test", "held_out")}
    return replace(task, **splits, version=content_version(*splits.values()), stop_strings=stop_strings)


@lru_cache(maxsize=2)
def _tokenizer(path: str, revision: str | None):
    from transformers import AutoTokenizer

    try:
        with readable(path) as (name, gguf):
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, **gguf)
    except Exception as error:  # of any kind: the readers of tokenizers and GGUF trust what a file says
        raise UserError(f"cannot read the tokenizer of {path!r} for its chat template: {first_line(error)}") from None
    tokenizer.name_or_path = path
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {path!r} has no chat template: {_ANOTHER}")
    return tokenizer


def _rendered(tokenizer, turns: list[dict[str, str]], **how: bool) -> str:
    """The turns as the chat template writes them, on a fixed day: a prompt is the same whenever and wherever it is made.

    Raises:
        UserError: the template raises, there are several and none is the default, or it computes the format of a date.
    """
    try:
        template = _DATE.sub(lambda call: repr(TODAY.strftime(call["format"])), tokenizer.get_chat_template())
        if "strftime_now(" in template:
            raise ValueError("it prints today's date")
        return tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, **how)
    except Exception as error:  # a template is a program of the model's author, and raises what it likes
        name, reason = tokenizer.name_or_path, first_line(error)
        raise UserError(f"the chat template of {name!r} cannot be used ({reason}): {_ANOTHER}") from None


def _end_of_turn(tokenizer) -> tuple[str, ...]:
    """What the chat template writes after an answer, up to and with the first special token in it.

    Some templates close the conversation behind the turn ("<|end|>\\n<|endoftext|>"), which no answer waits for.
    """
    marker = "ANSWER"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker}]
    _, answer, end = _rendered(tokenizer, turns).rpartition(marker)
    if not answer:  # the template drops answers, so that it does not show how they end
        return ()
    end = end.strip()
    marks = [(end.index(token), -len(token)) for token in tokenizer.get_added_vocab() if token.strip() and token in end]
    if marks:
        position, length = min(marks)
        end = end[: position - length]
    return (end,) if end else ()
