"""The exhibits of ``diagnose`` from made-up tables: gradient before credit, every setting, both shares of what is in the loss."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from replication.report import EXHIBITS

RULES = {"grpo": "all", "s_grpo": "rule", "t_spmo": "trie"}
SETTINGS = [("word_problems", "none"), ("word_problems", "before"), ("word_problems", "after"), ("multiplication", np.nan)]
SHARES = ("gradient_decisive", "credit_decisive", "kept_fraction", "distinct_transitions_in_loss")
NOISE = ("tokens_in_loss", "snr_update", "snr_per_1000_tokens", "cosine_with_grpo")


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    """Every quantity of every rule is another number; a control in the first setting alone, as ``diagnose`` has it."""
    rows = []
    values = iter(np.linspace(0.5, 0.9, 200).round(4))
    for place, (task, asides) in enumerate(SETTINGS):
        base = {"profile": "nano", "task": task, "asides": asides, "n": 32.0, "redraws": 4.0}
        rows.append(base | {"method": "generated", "selector": "generated", "quantity": "tokens_decisive", "value": 10.0 + place})
        for method, selector in [*RULES.items(), *([("s_grpo", "latest")] if asides == "after" else [])]:
            for quantity in NOISE if selector == "latest" else (*SHARES, *NOISE):
                value = next(values) * (100 if quantity in SHARES else 1)
                row = {"method": method, "selector": selector, "quantity": quantity, "value": value}
                rows.append(base | row | {"low": 0.9 * value, "high": 1.1 * value})
    return {"credit": pd.DataFrame(rows)}


def test_gradient_and_credit_of_every_setting_and_method_are_tabled_and_drawn(tables):
    shown = EXHIBITS["credit_vs_truth"].show(tables, "nano")
    assert len(shown.table) == len(SETTINGS) * len(RULES) and shown.table["setting"].nunique() == len(SETTINGS)
    measured = tables["credit"].set_index("quantity")["value"]
    for axis, quantity in zip(shown.figure.axes, ("gradient_decisive", "credit_decisive"), strict=True):
        drawn = [line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 1]
        assert sorted(drawn) == pytest.approx(sorted(measured[quantity])), "each panel shows one quantity"
        assert axis.get_xlim()[1] >= max(drawn)


def test_every_setting_is_said_larger_or_smaller_with_whether_its_intervals_overlap(tables):
    """The sentence once told the one setting in which T-SPMO looks best."""
    credit = tables["credit"].copy()
    shares = {"none": (40.0, 60.0), "before": (5.0, 70.0), "after": (90.0, 85.0), "": (75.0, 50.0)}  # bars: 10 % to both sides
    for asides, (sparse, full) in shares.items():
        own = (credit["asides"].fillna("") == asides) & (credit["quantity"] == "gradient_decisive")
        for method, value in (("t_spmo", sparse), ("grpo", full)):
            credit.loc[own & (credit["method"] == method), ["value", "low", "high"]] = [value, 0.9 * value, 1.1 * value]
    gradient, _ = EXHIBITS["credit_vs_truth"].show({"credit": credit}, "nano").sentences
    larger, smaller = gradient.split("; smaller on ")
    assert "(noise after) (90.0 against 85.0 %, the intervals overlap)" in larger
    assert "multiplication (75.0 against 50.0 %)" in larger
    assert "(fixed wording) (40.0 against 60.0 %)" in smaller and "(noise before) (5.0 against 70.0 %)" in smaller


def test_without_t_spmo_nothing_is_compared(tables):
    alone = {"credit": tables["credit"][tables["credit"]["method"] != "t_spmo"]}
    assert len(EXHIBITS["credit_vs_truth"].show(alone, "nano").sentences) == 1


def test_noise_is_tabled_of_every_setting_and_drawn_of_the_one_whose_controls_were_measured(tables):
    shown = EXHIBITS["gradient_snr"].show(tables, "nano")
    assert shown.table["setting"].nunique() == len(SETTINGS) and len(shown.table) == len(SETTINGS) * len(RULES) + 1
    assert len(shown.figure.axes[0].get_yticks()) == len(RULES) + 1
    credit = tables["credit"]
    one = EXHIBITS["gradient_snr"].show({"credit": credit[credit["task"] == "multiplication"]}, "nano").table
    assert set(one["setting"]) == {"multiplication"}


def test_an_estimate_under_0_is_drawn_at_the_edge_and_not_said_as_a_ratio(tables):
    """On a logarithmic axis it had no marker."""
    credit = tables["credit"].copy()
    one = (credit["selector"] == "latest") & credit["quantity"].str.startswith("snr")
    credit.loc[one, ["value", "low", "high"]] = [-0.123, -0.2, 0.4]
    shown = EXHIBITS["gradient_snr"].show({"credit": credit}, "nano")
    drawn = shown.table[shown.table["setting"] == "word_problems after"].reset_index(drop=True)
    place = drawn.index[drawn["selector"] == "latest"].item()
    for axis in shown.figure.axes[:2]:
        (edge,) = [line for line in axis.lines if line.get_marker() == "<"]
        assert edge.get_ydata()[0] == place and 1 < edge.get_xdata()[0] / axis.get_xlim()[0] < 1.5
    assert "0.12" not in shown.sentences[0]


def test_a_worked_example_of_forty_tokens_fits_a_page():
    rows = []
    for completion, correct in enumerate((1, 0)):
        for position in range(40):
            row = {"profile": "nano", "correct": correct, "completion": completion, "position": position, "prompt": "a question"}
            row |= {"token": " afternoon", "decisive": int(position == 3), "worth": 0.5 if position < 9 else np.nan}
            row |= {"right_in_group": 1, "group_size": 4}
            rows += [row | {"method": method, "selector": selector, "credit": 0.1} for method, selector in RULES.items()]
    shown = EXHIBITS["worked_example"].show({"worked_example": pd.DataFrame(rows)}, "nano")
    assert shown.figure.get_figwidth() < 12
    shown.figure.canvas.draw()
    renderer = shown.figure.canvas.get_renderer()
    for axis in shown.figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axis.texts if "afternoon" in text.get_text()]
        assert len(boxes) == 40
        assert all(left.x1 <= right.x0 + 1 for left, right in zip(boxes, boxes[1:], strict=False))
        title = axis._left_title.get_window_extent(renderer)
        assert all(not title.overlaps(box) for box in boxes)
