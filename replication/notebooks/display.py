"""What notebooks show things with: tables in few digits, figures as images, sentences as lists, claims as they are written down."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from replication.names import METHOD_LABELS as METHODS
from replication.names import TASK_LABELS as TASKS
from replication.report import page
from replication.report import rows as report_rows
from replication.statistics import Tables, load_claims, verdicts

if TYPE_CHECKING:
    from IPython.display import HTML, Image
    from matplotlib.figure import Figure


def readable(frame: pd.DataFrame) -> HTML:
    """A table for reading: few digits, names in words, empty cells where nothing was measured, no row numbers; escaped."""
    from IPython.display import HTML

    shown = frame.drop(columns=[name for name in ("schema_version",) if name in frame])
    numeric = {name: pd.api.types.is_numeric_dtype(shown[name]) and shown[name].dtype != bool for name in shown}
    head = Markup("").join(_tag("th", str(name).replace("_", " "), numeric[name]) for name in shown)
    rows = [
        Markup("<tr>{}</tr>").format(Markup("").join(_tag("td", _cell(value), numeric[name]) for name, value in row.items()))
        for row in shown.to_dict("records")
    ]
    body = Markup("\n").join(rows)
    return HTML(Markup("<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>").format(head, body))


def _tag(name: str, text: str, numeric: bool) -> Markup:
    # The alignment is written out, since JupyterLab would align everything to the right; the class is for the pages.
    kind = "number" if numeric else "words" if len(text) > 30 else "nowrap"
    where = "right; white-space: nowrap" if numeric else "left"
    return Markup('<{0} class="{1}" style="text-align: {2}">{3}</{0}>').format(Markup(name), kind, where, text)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return ""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
    if isinstance(value, int | float):
        return f"{int(value)}"
    text = str(value)
    return METHODS.get(text, TASKS.get(text, text))


def picture(figure: Figure, alt: str = "figure") -> Image:
    """A figure as an image of its own size; the same figure gives the same bytes."""
    from IPython.display import Image

    from replication.report.style import style

    data = io.BytesIO()
    with style():
        figure.savefig(data, format="png", dpi=150, metadata={"Software": None})
    return Image(data=data.getvalue(), format="png", width=round(100 * figure.get_figwidth()), alt=alt)


def bullets(sentences: Sequence[str]) -> HTML:
    """Sentences as a list; escaped, for a sentence may name a token, which is whatever the model wrote."""
    from IPython.display import HTML

    items = Markup("\n").join(Markup("<li>{}</li>").format(sentence) for sentence in sentences)
    return HTML(Markup("<ul>\n{}\n</ul>").format(items))


def paper_says(*claims: str) -> HTML:
    """The claims as data/claims.yaml has them: text, source mark, the paper's number, and the rule each is judged by."""
    chosen = [claim for claim in load_claims(page.CLAIMS) if claim.id in claims]
    columns = ["claim", "mark", "text", "the paper's number", "supported if"]
    rows = [(c.id, c.mark, c.text, "" if c.paper_value is None else c.paper_value, c.rule_text) for c in chosen]
    return readable(pd.DataFrame(rows, columns=columns))


def not_as_thought(tables: Tables) -> HTML:
    """The log of negative results, with the verdicts on these tables of the claims each touches."""
    rows = report_rows.negative_results(verdicts(page.CLAIMS, tables))
    return readable(pd.DataFrame(rows)[["date", "what", "expected", "found", "follows", "now"]])


def judged(tables: Tables, *claims: str) -> HTML:
    """The verdicts of some claims (default: all) on these tables."""
    rows = report_rows.verdict_rows(verdicts(page.CLAIMS, tables))
    frame = pd.DataFrame([row for row in rows if not claims or row["claim"] in claims])
    return readable(frame[["claim", "mark", "text", "verdict", "ours", "paper", "seeds", "items"]])
