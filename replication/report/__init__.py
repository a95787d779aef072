"""Figures, sentences and tables of the results, report.html, and the pages of executed notebooks.

In: the tables. Out: matplotlib figures, HTML files. Nothing here trains or measures.
Start with ``page`` for the report, ``figures`` for what is drawn, ``style`` for how.
"""

from __future__ import annotations

from replication.report.figures import FIGURES
from replication.report.page import find_tables, update_tables
from replication.report.pages import notebook_page
from replication.report.rows import negative_results, verdict_rows
from replication.report.style import COLOURS, MARKERS, caption, legend_beside, panels, percent_axis
from replication.report.style import style as figure_style

__all__ = [
    "COLOURS",
    "FIGURES",
    "MARKERS",
    "caption",
    "figure_style",
    "find_tables",
    "legend_beside",
    "negative_results",
    "notebook_page",
    "panels",
    "percent_axis",
    "update_tables",
    "verdict_rows",
]
