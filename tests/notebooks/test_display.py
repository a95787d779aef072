"""What cells show: source code, the stages of a step, tables."""

from __future__ import annotations

import ast
import html
import inspect
import re
import textwrap

import pandas as pd
import pytest
from markupsafe import Markup

from replication.algorithms import GRPO, SGRPO
from replication.notebooks import show_source, show_stage, show_table
from replication.objective import surrogate_loss
from replication.scoring import score


def shown_code(*things) -> str:
    (*_, last) = re.split(r"</small>", show_source(*things).data)
    return html.unescape(re.sub(r"<[^>]*>", "", last)).strip() + "\n"


@pytest.mark.parametrize("thing", [GRPO, GRPO.assign, SGRPO, SGRPO._kept_mask, surrogate_loss, score], ids=lambda t: t.__qualname__)
def test_the_shown_source_is_the_code_of_the_package_without_docstrings(thing):
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    code = shown_code(thing)
    assert ast.dump(ast.parse(code)) == ast.dump(tree) and '"""' not in code
    assert code.count("#") == inspect.getsource(thing).count("#"), "comments are part of what is shown"


def test_each_piece_of_source_is_named_by_its_file_in_the_repository():
    shown = show_source(GRPO.assign, surrogate_loss).data
    assert "GRPO.assign in replication/algorithms/grpo.py" in shown and "surrogate_loss in replication/objective.py" in shown


def written_like_this(text):
    return f"<script>{text}</script>" + "&amp;"


def test_shown_source_is_escaped():
    assert "<script>" not in show_source(written_like_this).data
    assert shown_code(written_like_this) == inspect.getsource(written_like_this)


@pytest.mark.parametrize("stage", ["sample", "reward", "credit", "score", "step"])
def test_five_stages_are_shown_and_the_present_one_is_marked(stage):
    boxes = re.findall(r"<li.*?</li>", show_stage(stage).data)
    assert [re.search(r"\d\. (\w+)", box)[1] for box in boxes] == ["sample", "reward", "credit", "score", "step"]
    (marked,) = [box for box in boxes if 'aria-current="step"' in box]
    assert f". {stage}<" in marked
    # A colour is written only together with its ground, so that the page may be light or dark.
    assert all(("color: #" in box) == ("background: #" in box) == (box == marked) for box in boxes)


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="choose from sample, reward, credit, score, step"):
        show_stage("reflect")


def test_a_table_escapes_texts_and_keeps_markup():
    frame = pd.DataFrame({"link": [Markup('<a href="x.ipynb">x</a>')], "text": ["<script>"]}, dtype=object)
    made = show_table(frame).data
    assert '<a href="x.ipynb">x</a>' in made and "&lt;script&gt;" in made and "<script" not in made
