"""What notebooks show things with: tables in few digits, figures as images, sentences as lists, claims as they are written down."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from replication import report
from replication.claims import load_claims
from replication.statistics import verdicts
from replication.summaries import METHODS, TASKS, Tables

if TYPE_CHECKING:
    from IPython.display import HTML, Image, Markdown
    from matplotlib.figure import Figure


def readable(frame: pd.DataFrame) -> HTML:
    """A table for reading: few digits, names in words, empty cells where nothing was measured, no row numbers; escaped."""
    from IPython.display import HTML

    shown = frame.drop(columns=[name for name in ("schema_version",) if name in frame])
    shown = shown.rename(columns=lambda name: str(name).replace("_", " ")).map(_cell)
    return HTML(shown.to_html(index=False, border=0, escape=True))


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

    from replication.plotting import style

    data = io.BytesIO()
    with style():
        figure.savefig(data, format="png", dpi=150, metadata={"Software": None})
    return Image(data=data.getvalue(), format="png", width=round(100 * figure.get_figwidth()), alt=alt)


def bullets(sentences: Sequence[str]) -> Markdown:
    """Sentences as a list."""
    from IPython.display import Markdown

    return Markdown("\n".join(f"- {sentence}" for sentence in sentences))


def paper_says(*claims: str) -> HTML:
    """The claims as data/claims.yaml has them: text, source mark, the paper's number, and the rule each is judged by."""
    chosen = [claim for claim in load_claims(report.CLAIMS) if claim.id in claims]
    columns = ["claim", "mark", "text", "the paper's number", "supported if"]
    rows = [(c.id, c.mark, c.text, "" if c.paper_value is None else c.paper_value, c.rule_text) for c in chosen]
    return readable(pd.DataFrame(rows, columns=columns))


def judged(tables: Tables, *claims: str) -> HTML:
    """The verdicts of some claims (default: all) on these tables."""
    rows = report.verdict_rows(verdicts(report.CLAIMS, tables))
    frame = pd.DataFrame([row for row in rows if not claims or row["claim"] in claims])
    return readable(frame[["claim", "mark", "text", "paper", "ours", "seeds", "items", "verdict"]])
