"""Exhibits, verdicts and pages, from the tables alone: everything here can be made again without a model.

In: the tables. Out: report.html, the figures, the pages of notebooks, and what the notebooks show.
Start with ``exhibits``, the one list: ``EXHIBITS[name].show(tables, profile)`` is a figure, one or two paragraphs, and the table
behind them. One module a topic holds how: headline, ablations, tokens, regimes, side_effects, cost, credit. ``advice`` says which
setting to start with. ``style`` is what all figures share.
"""

from __future__ import annotations

from replication.report.advice import advice_table
from replication.report.exhibits import EXHIBITS, save_figures
from replication.report.findings import conclusions, limits, negative_results, power, short_answer, verdict_rows, verdict_table
from replication.report.headline import LEVEL, learning_table
from replication.report.html import notebook_page, table_html, with_formulas
from replication.report.page import build, find_tables, rebuild_tables, update_tables
from replication.report.plan import plan_frame, plan_sentence, plan_table, state_table
from replication.report.publishing import publish
from replication.report.style import (
    COLOURS,
    MARKERS,
    caption,
    figure_style,
    legend_beside,
    not_run,
    panels,
    percent_axis,
    png,
    save_figure,
)
from replication.report.wording import interval, number

__all__ = [
    "COLOURS",
    "EXHIBITS",
    "LEVEL",
    "MARKERS",
    "advice_table",
    "build",
    "caption",
    "conclusions",
    "figure_style",
    "find_tables",
    "interval",
    "learning_table",
    "legend_beside",
    "limits",
    "negative_results",
    "not_run",
    "notebook_page",
    "number",
    "panels",
    "percent_axis",
    "plan_frame",
    "plan_sentence",
    "plan_table",
    "png",
    "power",
    "publish",
    "rebuild_tables",
    "save_figure",
    "save_figures",
    "short_answer",
    "state_table",
    "table_html",
    "update_tables",
    "verdict_rows",
    "verdict_table",
    "with_formulas",
]
