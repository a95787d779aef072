"""Figures from made-up tables: that they draw what the tables say, survive what tables lack, and save the same bytes."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import synthetic_tables
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from replication.errors import UserError
from replication.report import style
from replication.report.figures import FIGURES, save_figure
from replication.report.figures_regularisation import amount, prices
from replication.statistics.comparisons import tuning

NAMES = ("full_vs_sparse", "learning_curves", "token_fraction", "lora_rank", "learning_rate", "cost", "cost_to_reach")
#: What is drawn in other units than percent, and what ``diagnose`` measures.
OTHERS = ("regularisation", "price_of_accuracy", "credit_vs_truth", "worked_example", "gradient_snr")


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return synthetic_tables.full(seeds=3)


@pytest.fixture(scope="module")
def drawn(tables: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    return {name: draw(tables) for name, draw in FIGURES.items()}


def _words(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(Text))


def test_every_figure_has_a_name_and_a_docstring():
    assert sorted(FIGURES) == sorted((*NAMES, *OTHERS))
    assert all(draw.__doc__ and draw.__name__ == name for name, draw in FIGURES.items())


@pytest.mark.parametrize("name", NAMES)
def test_axes_have_units_and_captions_the_model_and_the_seeds(name: str, drawn: dict[str, Figure]):
    figure = drawn[name]
    for axis in figure.axes:
        assert "(%)" in axis.get_ylabel()
        assert axis.get_xlabel() or name == "full_vs_sparse"  # whose x axis names methods
    words = _words(figure)
    assert "not Qwen" in words and re.search(r"\b[235] (seeds|at each point)", words)
    assert "not run" not in words


def test_headline_shows_every_seed_and_the_mean(tables: dict[str, pd.DataFrame], drawn: dict[str, Figure]):
    figure = drawn["full_vs_sparse"]
    runs = tables["runs"][tables["runs"]["ablation"] == "full_vs_sparse"]
    for axis, task in zip(figure.axes, ("word_problems", "multiplication"), strict=True):
        drawn = np.sort(np.concatenate([points.get_offsets()[:, 1] for points in axis.collections if len(points.get_offsets())]))
        mine = runs[(runs["task"] == task) & (runs["method"] != "base")]["accuracy"]
        np.testing.assert_allclose(drawn, np.sort(100 * mine.to_numpy(dtype=float)))
        for method in synthetic_tables.METHODS:
            mean = runs[(runs["task"] == task) & (runs["method"] == method)]["accuracy"].mean()
            assert f"{100 * mean:.1f}" in {text.get_text() for text in axis.texts}


def test_headline_bars_are_the_intervals_of_the_verdicts_kind(tables: dict[str, pd.DataFrame]):
    runs = tables["runs"][(tables["runs"]["ablation"] == "full_vs_sparse") & (tables["runs"]["method"] == "s_grpo")]
    runs = runs[runs["task"] == "word_problems"]
    value, low, high = style.accuracy_interval(tables, runs)
    assert value == pytest.approx(100 * runs["accuracy"].mean())
    # At least the item error of 300 items answered by 3 seeds, at most that of one seed.
    assert 2 * 1.96 * 100 * np.sqrt(0.88 * 0.12 / 900) < high - low < 12
    without = style.accuracy_interval({}, runs)  # then over seeds alone
    assert without[0] == pytest.approx(value) and without[1] < value < without[2]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("empty", [{}, {"runs": pd.DataFrame(), "curves": pd.DataFrame(), "items": pd.DataFrame()}])
def test_without_runs_a_figure_says_so(name: str, empty: dict[str, pd.DataFrame]):
    assert "not run" in _words(FIGURES[name](empty))


@pytest.mark.parametrize("name", NAMES)
def test_nearly_empty_tables_are_drawn(name: str, tables: dict[str, pd.DataFrame]):
    runs = tables["runs"]
    one = runs.groupby("ablation").head(8).groupby(["ablation", "task"]).head(2).copy()
    one.loc[one.index[0], ["status", "accuracy"]] = ["pending", np.nan]
    FIGURES[name]({"runs": one, "curves": tables["curves"].head(40)}).canvas.draw()


@pytest.mark.parametrize("name", NAMES)
def test_pending_and_failed_runs_are_not_drawn(name: str, tables: dict[str, pd.DataFrame]):
    runs = tables["runs"].assign(status="pending", accuracy=0.0)
    assert "not run" in _words(FIGURES[name](tables | {"runs": runs}))


def test_diverged_runs_are_drawn_and_counted(drawn: dict[str, Figure]):
    assert "4 diverged runs" in _words(drawn["learning_rate"])


@pytest.mark.parametrize("name", ["full_vs_sparse", "cost", "token_fraction", "lora_rank", "learning_rate"])
def test_every_diverged_run_has_a_cross_at_its_own_number(name: str, tables: dict[str, pd.DataFrame]):
    runs = tables["runs"].copy()
    one = (runs["task"] == "word_problems") & (runs["method"] == "s_grpo") & (runs["seed"] == 1)
    measure = "validation_accuracy" if name == "learning_rate" else "accuracy"
    runs["status"] = np.where(one, "diverged", "done")
    ablation = "full_vs_sparse" if name == "cost" else name
    crosses = [
        points.get_offsets()[:, 1]
        for points in FIGURES[name](tables | {"runs": runs}).axes[0].collections
        if to_rgb(points.get_edgecolor()[0]) == (0.0, 0.0, 0.0) and len(points.get_offsets()) and points.get_linewidth()[0] == 1.4
    ]
    expected = np.sort(100 * runs[one & (runs["ablation"] == ablation)][measure].to_numpy(dtype=float))
    np.testing.assert_allclose(np.sort(np.concatenate(crosses)), expected)


def test_a_method_without_runs_is_named_as_not_run(tables: dict[str, pd.DataFrame]):
    runs = tables["runs"][tables["runs"]["method"] != "t_spmo"]
    assert "not run" in _words(FIGURES["full_vs_sparse"](tables | {"runs": runs}))


def test_smoke_numbers_are_called_what_they_are():
    assert "SMOKE RUN" in _words(FIGURES["full_vs_sparse"](synthetic_tables.headline(profile="smoke", items=20)))


def test_a_missing_column_is_named(tables: dict[str, pd.DataFrame]):
    with pytest.raises(UserError, match="runs.csv has no column tokens_in_loss"):
        FIGURES["cost"](tables | {"runs": tables["runs"].drop(columns="tokens_in_loss")})


def test_rank_shows_the_tuned_rate_alone(tables: dict[str, pd.DataFrame], drawn: dict[str, Figure]):
    # Tuning points of one seed at another rate must not be taken for the result at that rank.
    runs = tables["runs"]
    tried = runs[(runs["ablation"] == "lora_rank") & (runs["seed"] == 0)]
    tried = tried.assign(learning_rate=0.5, accuracy=0.01, run_id="tried" + tried["run_id"].str[5:])
    more = FIGURES["lora_rank"](tables | {"runs": pd.concat([runs, tried], ignore_index=True)})
    assert more.get_label() == drawn["lora_rank"].get_label()
    assert "full fine-tuning" in _words(more)


def _rates(*points: tuple[float, float, str]) -> dict[str, pd.DataFrame]:
    frame = pd.DataFrame(points, columns=["learning_rate", "validation_accuracy", "status"])
    frame = frame.assign(ablation="learning_rate", task="svamp", method="grpo", seed=0, accuracy=0.5, profile="nano")
    return {"runs": frame.assign(run_id=[f"r{i}" for i in range(len(frame))])}


def test_tuning_chooses_on_validation_the_lower_of_equals_and_measures_the_width():
    points = [(1e-4, 0.70, "done"), (1e-3, 0.80, "done"), (2e-3, 0.80, "done"), (4e-3, 0.76, "done"), (1e-2, 0.2, "diverged")]
    table = tuning(_rates(*points, (1e-1, 0.79, "done")))
    assert table.loc[table["chosen"], "learning_rate"].tolist() == [1e-3]
    # 1e-3 to 4e-3 are within 5 points without a break; 1e-1 is too, but beyond the collapse at 1e-2.
    assert table["forgiving"].tolist() == pytest.approx([4.0] * 6)
    assert table["diverged"].tolist() == [0, 0, 0, 0, 1, 0]
    assert not tuning(_rates((1e-3, np.nan, "diverged")))["chosen"].any()
    assert tuning({}).empty


def test_a_price_is_what_was_spent_when_the_level_was_reached():
    """80 % of the way from 0.4 to 0.9 is 0.8: half-way between 0.7 at step 50 and 0.9 at step 75, at 50 tokens a step."""
    run = {"run_id": "r", "ablation": "full_vs_sparse", "profile": "nano", "task": "word_problems", "method": "grpo", "seed": 0}
    run |= {"status": "done", "accuracy": 0.9, "validation_accuracy": 0.9, "steps_done": 75, "model": "nano"}
    accuracy = {0: 0.4, 25: 0.6, 50: 0.7, 75: 0.9}
    curves = [("r", step, "validation_accuracy", value) for step, value in accuracy.items()]
    curves += [("r", step, "tokens_in_loss", 50.0) for step in range(1, 76)]
    curves += [("r", step, "predicted_flops", 2e9 * step) for step in range(1, 76)]
    timings = pd.DataFrame([{"run_id": "r", "rollout_s": 6.0, "score_s": 2.0, "update_s": 1.0}])
    tables = {"runs": pd.DataFrame([run]), "curves": pd.DataFrame(curves, columns=["run_id", "step", "metric", "value"])}
    (row,) = prices(tables | {"timings": timings}).to_dict("records")
    assert row["level"] == pytest.approx(80) and row["step"] == pytest.approx(62.5)  # half-way from 0.7 to the final 0.9
    assert row["tokens_in_loss"] == pytest.approx(62.5 * 50)
    assert row["predicted_flops"] == pytest.approx(2e9 * (sum(range(1, 63)) + 63 / 2))
    assert np.isnan(row["tokens_forwarded"]), "what no step recorded is missing, not 0"
    assert row["update_seconds"] == pytest.approx(3.0 * 62.5 / 75) and row["seconds"] == pytest.approx(9.0 * 62.5 / 75)
    never = prices({**tables, "timings": timings}, share=1.2).to_dict("records")[0]
    assert np.isnan(never["step"]) and np.isnan(never["tokens_in_loss"]), "not reached is missing, not 0"


def test_amounts_are_written_in_few_digits():
    assert [amount(value) for value in (0.456, 27.2, 12345.6, 5.51e12)] == ["0.46", "27", "12,346", "5.5·$10^{12}$"]
    assert amount(9.99e12) == "1.0·$10^{13}$"


def test_longer_numbers_are_drawn_or_said_to_be_missing(tables: dict[str, pd.DataFrame], drawn: dict[str, Figure]):
    assert "Short line: with longer numbers" in _words(drawn["full_vs_sparse"])
    without = tables | {"runs": tables["runs"].drop(columns="longer_numbers_accuracy")}
    assert "Longer numbers: not measured" in _words(FIGURES["full_vs_sparse"](without))


def test_colours_are_told_apart_without_colour_vision():
    # Machado et al. 2009, severity 1.0, applied to linear RGB.
    blindness = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }
    for matrix in blindness.values():
        seen = [np.array(matrix) @ (np.array(to_rgb(colour)) ** 2.2) for colour in style.COLOURS.values()]
        # The nearest pair (grey and green) is 0.10 apart; 0.05 is about two just-noticeable steps at this lightness.
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 0.05
    assert len(set(style.MARKERS.values())) == len(style.MARKERS)


def test_saved_twice_the_bytes_are_equal_and_tell_where_they_are_from(tables: dict[str, pd.DataFrame], tmp_path: Path):
    manifest = {"commit": "abc123", "dirty": False, "made": "2025-01-01", "seeds": [0, 1]}
    first = save_figure(FIGURES["cost"](tables), tmp_path / "a" / "cost", manifest)
    second = save_figure(FIGURES["cost"](tables), tmp_path / "b" / "cost", manifest | {"made": "2026-01-01"})
    assert [path.name for path in first] == ["cost.png", "cost.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    image = Image.open(first[0])
    provenance = json.loads(image.info["Description"])
    assert provenance["commit"] == "abc123" and "made" not in provenance
    runs = tables["runs"]
    trained = (runs["ablation"] == "full_vs_sparse") & (runs["method"] != "base")
    assert provenance["run_ids"] == sorted(runs[trained]["run_id"])
    assert round(image.info["dpi"][0]) == 150
    svg = first[1].read_text()
    assert "abc123" in svg and "<dc:date>" not in svg


def test_the_commits_of_the_runs_stand_for_that_of_the_drawing(tables: dict[str, pd.DataFrame], tmp_path: Path):
    manifests = [{"commit": commit, "run_commits": ["f00"], "runs_dirty": False} for commit in ("a", "b")]
    one, other = (save_figure(FIGURES["cost"]({}), tmp_path / manifest["commit"], manifest)[0] for manifest in manifests)
    assert one.read_bytes() == other.read_bytes() and b"f00" in one.read_bytes()


def test_the_order_of_rows_and_the_readers_style_change_nothing(tables: dict[str, pd.DataFrame], tmp_path: Path):
    shuffled = {name: frame.sample(frac=1, random_state=5) for name, frame in tables.items()}
    plain = save_figure(FIGURES["full_vs_sparse"](tables), tmp_path / "plain", {})
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "savefig.bbox": "tight"}):
        other = save_figure(FIGURES["full_vs_sparse"](shuffled), tmp_path / "other", {})
    assert [path.read_bytes() for path in plain] == [path.read_bytes() for path in other]
    assert dict(mpl.rcParams) == before


def _drawn_texts(figure: Figure) -> list[Text]:
    """Every text that is drawn: all but the labels of ticks beyond the limits, which exist and are skipped."""
    skipped = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high:
                    skipped |= {id(tick.label1), id(tick.label2)}
    texts = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for text in texts if id(text) not in skipped and text.get_text().strip()]


@pytest.mark.parametrize("name", (*NAMES, "regularisation", "price_of_accuracy"))
def test_no_text_lies_on_another_or_leaves_the_page(name: str, drawn: dict[str, Figure]):
    figure = drawn[name]
    with style.style():
        figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in _drawn_texts(figure)]
    for legend in figure.legends:
        assert not legend.get_window_extent(renderer).overlaps(figure._suptitle.get_window_extent(renderer))
    page = figure.bbox
    for words, box in boxes:
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1 and page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, words
    for (a, box), (b, other) in combinations(boxes, 2):
        width = min(box.x1, other.x1) - max(box.x0, other.x0)
        height = min(box.y1, other.y1) - max(box.y0, other.y0)
        assert width <= 1 or height <= 1, f"{a!r} lies on {b!r}"
