"""What notebooks show: tables in few digits, figures as images, source code, the stages of a step, claims and verdicts."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Image
from markupsafe import Markup
from matplotlib.figure import Figure

from replication.names import CLAIMS, ROOT
from replication.report import negative_results, png, table_html, verdict_table
from replication.statistics import Tables, load_claims, verdicts

#: The stages of one training step, each with the package's name for it.
STAGES = {
    "sample": "sample_groups",
    "reward": "extract_answer",
    "credit": "method.assign",
    "score": "token_log_probs",
    "step": "surrogate_loss",
}


def show_table(frame: pd.DataFrame) -> HTML:
    """A table for reading: few digits, methods and tasks by their labels, empty cells where nothing was measured, no row numbers.

    Texts are escaped; a cell of type Markup is shown as the HTML it is.
    """
    return HTML(table_html(frame))


def show_figure(figure: Figure, alt: str = "figure") -> Image:
    """A figure as an image of its own size; the same figure gives the same bytes."""
    return Image(data=png(figure), format="png", width=round(100 * figure.get_figwidth()), alt=alt)


def show_source(*things: Any) -> HTML:
    """The source of functions, methods or classes of the package, highlighted; docstrings are left out (``help`` shows them).

    Each piece is named by its file. Colours are written into the HTML on a light ground, so that a dark theme can show them too.
    """
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    box = "overflow-x: auto; padding: .5em .7em; background: #f6f8fa; color: #1b1f24; border: 1px solid #d8dde2"
    plain = "margin: 0; border: 0; padding: 0; background: none; color: inherit"
    formatter = HtmlFormatter(noclasses=True, nobackground=True, cssclass="source", cssstyles=box, prestyles=plain)
    parts = []
    for thing in things:
        file = Path(inspect.getsourcefile(thing)).resolve()
        name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name
        parts.append(Markup("<small>{} in {}</small>").format(thing.__qualname__, name.as_posix()))
        parts.append(Markup(highlight(_without_docstrings(inspect.getsource(thing)), PythonLexer(), formatter)))
    return HTML(str(Markup("\n").join(parts)))


def _without_docstrings(source: str) -> str:
    source = textwrap.dedent(source)
    lines: list[str | None] = list(source.splitlines())
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None and len(node.body) > 1:
            first, after = node.body[0].lineno - 1, node.body[0].end_lineno
            while not lines[after]:  # the blank lines below a docstring belong to it
                after += 1
            lines[first:after] = [None] * (after - first)
    return "\n".join(line for line in lines if line is not None) + "\n"


def show_stage(stage: str) -> HTML:
    """The five stages of a training step in a row, the present one filled; readable on a light and on a dark page.

    Raises:
        ValueError: for a stage that is not one of sample, reward, credit, score, step.
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}: choose from {', '.join(STAGES)}")
    frame = "flex: 1 1 6.5em; padding: .25em .6em; border: 1px solid; border-radius: 4px"
    boxes = []
    for number, (name, function) in enumerate(STAGES.items(), start=1):
        # Frames and letters take the page's own colour; the filled box brings both of its colours along.
        look, present = "opacity: .75", Markup("")
        if name == stage:
            look, present = "background: #0b5394; color: #ffffff; font-weight: bold", Markup(' aria-current="step"')
        box = Markup('<li style="{}; {}"{}>{}. {}<br><small>{}</small></li>')
        boxes.append(box.format(frame, look, present, number, name, function))
    row = "display: flex; flex-wrap: wrap; gap: .3em; list-style: none; margin: .3em 0; padding: 0; max-width: 50em"
    return HTML(str(Markup('<ol style="{}">{}</ol>').format(row, Markup("").join(boxes))))


def bullets(sentences: Sequence[str]) -> HTML:
    """Sentences as a list; escaped, since a sentence may name a token, and a token is any text that a model wrote."""
    items = Markup("\n").join(Markup("<li>{}</li>").format(sentence) for sentence in sentences)
    return HTML(str(Markup("<ul>\n{}\n</ul>").format(items)))


def show_claims(*claims: str) -> HTML:
    """The claims as data/claims.yaml has them: text, source mark, the paper's number, and the rule of the verdict."""
    chosen = [claim for claim in load_claims(CLAIMS) if claim.id in claims]
    columns = ["claim", "mark", "text", "the paper's number", "supported if"]
    rows = [(c.id, c.mark, c.text, "" if c.paper_value is None else c.paper_value, c.rule_text) for c in chosen]
    return show_table(pd.DataFrame(rows, columns=columns))


def show_negative_results(tables: Tables) -> HTML:
    """The log of negative results; the last column has the verdicts of these tables on the claims of each entry."""
    rows = negative_results(verdicts(CLAIMS, tables))
    return show_table(pd.DataFrame(rows)[["date", "what", "expected", "found", "follows", "now"]])


def show_verdicts(tables: Tables, *claims: str) -> HTML:
    """The verdicts of some claims (default: all) on these tables."""
    return HTML(verdict_table(verdicts(CLAIMS, tables), *claims))
