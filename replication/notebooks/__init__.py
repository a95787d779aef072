"""The notebooks: running them, what their cells show, and the exercises.

In: notebooks, parameters, groups of answers, tables. Out: executed copies and pages; tables, figures and HTML in cells.
Start with ``runner`` for executing notebooks, ``display`` for what a cell shows, ``training`` for runs started by a cell,
``toy_group`` for the four answers that the walkthroughs follow, ``exercises`` for the checks.
"""

from __future__ import annotations

from replication.notebooks import exercises
from replication.notebooks.contents import reading_order
from replication.notebooks.display import (
    bullets,
    show_claims,
    show_figure,
    show_negative_results,
    show_source,
    show_stage,
    show_table,
    show_verdicts,
)
from replication.notebooks.interactive import explore
from replication.notebooks.parameters_cell import notebook_names, parameters
from replication.notebooks.runner import run_all
from replication.notebooks.toy_figures import credit_map, gradient_table, keep_probability, work_map
from replication.notebooks.toy_group import TOY, ShownGroup, keep_probabilities, toy_gradient
from replication.notebooks.toy_trie import trie
from replication.notebooks.training import accuracies, learning, short_training, train_missing

__all__ = [
    "TOY",
    "ShownGroup",
    "accuracies",
    "bullets",
    "credit_map",
    "exercises",
    "explore",
    "gradient_table",
    "keep_probabilities",
    "keep_probability",
    "learning",
    "notebook_names",
    "parameters",
    "reading_order",
    "run_all",
    "short_training",
    "show_claims",
    "show_figure",
    "show_negative_results",
    "show_source",
    "show_stage",
    "show_table",
    "show_verdicts",
    "toy_gradient",
    "train_missing",
    "trie",
    "work_map",
]
