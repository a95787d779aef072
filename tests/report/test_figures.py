"""Figures from made-up tables: they draw what the tables say, survive what tables lack, and save the same bytes."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import synthetic_tables as synthetic
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from replication.report import COLOURS, EXHIBITS, MARKERS, cost, figure_style, save_figure
from replication.report.cost import cost_table, prices
from replication.statistics import with_setting

#: What ``diagnose`` measures and made-up tables of runs do not hold.
MEASURED = ("credit_vs_truth", "worked_example", "gradient_snr")
#: What is drawn from answers per item of the ablations, which the made-up tables do not hold either.
OF_ITEMS = ("which_tokens",)
#: What ablations of their own are drawn from (tests/report/test_regimes.py).
OF_REGIMES = ("regimes", "overfitting", "replay")
SETTINGS = ("word_problems none", "word_problems before", "word_problems after", "multiplication")
NAMES = tuple(name for name in EXHIBITS if name not in (*MEASURED, *OF_ITEMS, *OF_REGIMES))


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return synthetic.full(seeds=3)


def draw(name: str, tables: dict[str, pd.DataFrame], profile: str = "nano") -> Figure:
    return EXHIBITS[name].show(tables, profile).figure


@pytest.fixture(scope="module")
def drawn(tables: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    return {name: draw(name, tables) for name in EXHIBITS}


def _words(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(Text))


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_of_which_model_and_how_many_seeds_it_is(name: str, drawn: dict[str, Figure]):
    words = _words(drawn[name])
    assert "not Qwen" in words and "not run" not in words
    assert re.search(r"\b[235] seeds", words)
    assert all(axis.get_xlabel() or axis.get_xticklabels() for axis in drawn[name].axes)


def test_headline_shows_every_seed_and_the_mean(tables: dict[str, pd.DataFrame], drawn: dict[str, Figure]):
    runs = with_setting(tables["runs"][tables["runs"]["ablation"] == "full_vs_sparse"])
    for axis, setting in zip(drawn["full_vs_sparse"].axes, SETTINGS, strict=True):
        places = [points.get_offsets()[:, 1] for points in axis.collections if len(points.get_offsets())]
        here = runs[runs["setting"] == setting]
        trained = here[here["method"] != "base"]["accuracy"]
        np.testing.assert_allclose(np.sort(np.concatenate(places)), np.sort(100 * trained.to_numpy(dtype=float)))
        for method in synthetic.METHODS:
            mean = here[here["method"] == method]["accuracy"].mean()
            assert f"{100 * mean:.1f}" in {text.get_text() for text in axis.texts}


def test_lines_go_through_the_means_of_the_table(tables: dict[str, pd.DataFrame]):
    shown = EXHIBITS["lora_rank"].show(tables, "nano")
    for method, own in shown.table.groupby("method"):
        lines = [line for line in shown.figure.axes[0].lines if line.get_marker() == MARKERS[method]]
        (line,) = [line for line in lines if len(line.get_ydata()) > 2]
        np.testing.assert_allclose(np.sort(line.get_ydata()), np.sort(own["accuracy"]))


@pytest.mark.parametrize("name", EXHIBITS)
@pytest.mark.parametrize("empty", [{}, {"runs": pd.DataFrame(), "curves": pd.DataFrame(), "items": pd.DataFrame()}])
def test_without_runs_an_exhibit_says_so(name: str, empty: dict[str, pd.DataFrame]):
    shown = EXHIBITS[name].show(empty, "nano")
    assert "not run" in _words(shown.figure) and shown.sentences == ["Not run."] and shown.table.empty


@pytest.mark.parametrize("name", NAMES)
def test_nearly_empty_tables_are_drawn(name: str, tables: dict[str, pd.DataFrame]):
    runs = tables["runs"]
    one = runs.groupby("ablation").head(8).groupby(["ablation", "task"]).head(2).copy()
    one.loc[one.index[0], ["status", "accuracy"]] = ["pending", np.nan]
    shown = EXHIBITS[name].show({"runs": one, "curves": tables["curves"].head(40)}, "nano")
    shown.figure.canvas.draw()
    assert 1 <= len(shown.sentences) <= 2


@pytest.mark.parametrize("name", NAMES)
def test_pending_runs_and_those_of_other_profiles_are_not_drawn(name: str, tables: dict[str, pd.DataFrame]):
    pending = tables["runs"].assign(status="pending", accuracy=0.0)
    assert "not run" in _words(draw(name, tables | {"runs": pending}))
    assert "not run" in _words(draw(name, tables, "paper"))


@pytest.mark.parametrize("name", ["full_vs_sparse", "token_fraction", "lora_rank", "learning_rate"])
def test_every_diverged_run_has_a_cross_at_its_own_number(name: str, tables: dict[str, pd.DataFrame]):
    runs = tables["runs"].copy()
    one = (with_setting(runs)["setting"] == "word_problems after") & (runs["method"] == "s_grpo") & (runs["seed"] == 1)
    measure = "validation_accuracy" if name == "learning_rate" else "accuracy"
    runs["status"] = np.where(one, "diverged", "done")
    figure = draw(name, tables | {"runs": runs})
    crosses = [
        points.get_offsets()[:, 0 if name == "token_fraction" else 1]
        for points in figure.axes[2 if name == "full_vs_sparse" else 0].collections
        if to_rgb(points.get_edgecolor()[0]) == (0.0, 0.0, 0.0) and len(points.get_offsets()) and points.get_linewidth()[0] == 1.4
    ]
    expected = np.sort(100 * runs[one & (runs["ablation"] == name)][measure].to_numpy(dtype=float))
    np.testing.assert_allclose(np.sort(np.concatenate(crosses)), expected)
    assert "black ×: " in _words(figure)


def test_a_method_without_runs_is_named_as_not_run(tables: dict[str, pd.DataFrame]):
    runs = tables["runs"][tables["runs"]["method"] != "t_spmo"]
    assert "not run" in _words(draw("full_vs_sparse", tables | {"runs": runs}))


def test_smoke_numbers_are_called_what_they_are():
    assert "SMOKE RUN" in _words(draw("full_vs_sparse", synthetic.headline(profile="smoke", items=20), "smoke"))


def test_no_panel_is_dead(tables: dict[str, pd.DataFrame]):
    """The task not trained had a panel with nothing but zeros, and held-out templates one without a point."""
    runs = tables["runs"].assign(other_task_accuracy=0.0)
    products = runs["task"] == "multiplication"
    runs.loc[products, "held_out_accuracy"] = np.nan
    axes = draw("regularisation", tables | {"runs": runs}).axes
    labels = [" ".join(axis.get_ylabel().split()) for axis in axes]
    assert not any("not trained" in label for label in labels)
    (held_out,) = [axis for axis, label in zip(axes, labels, strict=True) if "held-out" in label]
    assert len(held_out.get_xticks()) == 3, "of the word problems alone"
    for axis in axes:
        heights = np.concatenate([points.get_offsets()[:, 1] for points in axis.collections if len(points.get_offsets())])
        assert np.ptp(heights) > 0


def _prices(ends: tuple[float, ...] = (0.9,)) -> dict[str, pd.DataFrame]:
    """GRPO runs that go from 0.4 to 0.6, 0.7 and ``ends`` at 25, 50 and 75 steps, 50 tokens in the loss and 8 + 2 others a step."""
    runs, curves, timings = [], [], []
    for seed, end in enumerate(ends):
        name = f"r{seed}"
        run = {"run_id": name, "ablation": "full_vs_sparse", "profile": "nano", "task": "word_problems", "method": "grpo"}
        runs.append(run | {"seed": seed, "status": "done", "accuracy": end})
        curves += [(name, step, "validation_accuracy", value) for step, value in {0: 0.4, 25: 0.6, 50: 0.7, 75: end}.items()]
        for metric, each in (("tokens_in_loss", 50.0), ("tokens_generated", 8.0), ("tokens_forwarded", 2.0)):
            curves += [(name, step, metric, each) for step in range(1, 76)]
        timings.append({"run_id": name, "rollout_s": 6.0, "score_s": 2.0, "update_s": 1.0})
    frame = pd.DataFrame(curves, columns=["run_id", "step", "metric", "value"])
    return {"runs": pd.DataFrame(runs), "curves": frame, "timings": pd.DataFrame(timings)}


def test_a_price_is_what_was_spent_when_the_level_was_reached(monkeypatch):
    """80 % of the way from 0.4 to 0.9 is 0.8: half-way between 0.7 at step 50 and 0.9 at step 75."""
    (row,) = prices(_prices(), "nano").to_dict("records")
    assert row["level"] == pytest.approx(80) and row["step"] == pytest.approx(62.5)
    assert row["tokens_in_loss"] == pytest.approx(62.5 * 50)
    assert row["tokens_through_model"] == pytest.approx(62.5 * (8 + 2)), "sampled and forwarded"
    assert row["seconds"] == pytest.approx(9.0 * 62.5 / 75)
    tables = _prices()
    tables["curves"] = tables["curves"][tables["curves"]["metric"] != "tokens_forwarded"]
    (unknown,) = prices(tables, "nano").to_dict("records")
    assert np.isnan(unknown["tokens_through_model"]), "what no step recorded is missing, not 0"
    monkeypatch.setattr(cost, "SHARE", 1.2)
    (never,) = prices(_prices(), "nano").to_dict("records")
    assert np.isnan(never["step"]) and np.isnan(never["tokens_in_loss"]), "not reached is missing, not 0"


def test_seeds_that_never_reach_the_level_count_in_the_price():
    """The mean over the seeds that got there flattered a method whose worst seeds never did."""
    # The mean end is 0.8, the level 0.4 + 0.8 * 0.4 = 0.72. Steps: 50 + 25 * 0.02 / (end - 0.7).
    (row,) = cost_table(_prices((0.9, 0.9, 0.8, 0.95, 0.45)), "nano").to_dict("records")
    assert (row["seeds"], row["reached"], row["level"]) == (5, 4, pytest.approx(72))
    assert row["tokens_in_loss_to_level"] == pytest.approx(50 * 52.5), "the third of five, the failed one being the dearest"
    (mostly,) = cost_table(_prices((0.9, 0.5, 0.5)), "nano").to_dict("records")
    assert mostly["reached"] == 3 and np.isfinite(mostly["seconds_to_level"])
    (failed,) = cost_table(_prices((1.0, 0.71, 0.71)), "nano").to_dict("records")
    assert (failed["reached"], failed["seeds"]) == (1, 3) and np.isnan(failed["seconds_to_level"])


def test_each_choice_of_tokens_has_a_row_with_its_seeds_and_mean_the_best_on_top(tables: dict[str, pd.DataFrame]):
    """All but two choices of the full plan keep the same share, and stood one on the other."""
    shown = EXHIBITS["token_fraction"].show(tables, "nano")
    (axis,) = shown.figure.axes
    means = [line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 1]
    assert means == pytest.approx(sorted(shown.table["accuracy"], reverse=True)) and len(axis.get_yticks()) == len(means)
    dots = [points.get_offsets()[:, 0] for points in axis.collections if len(points.get_offsets())]
    assert [of_row.mean() for of_row in dots] == pytest.approx(means) and {len(of_row) for of_row in dots} == {3}


def test_rank_shows_the_tuned_rate_alone(tables: dict[str, pd.DataFrame]):
    # Tuning points of one seed at another rate must not be taken for the result at that rank.
    runs = tables["runs"]
    tried = runs[(runs["ablation"] == "lora_rank") & (runs["seed"] == 0)]
    tried = tried.assign(learning_rate=0.5, accuracy=0.01, validation_accuracy=0.0, run_id="tried" + tried["run_id"].str[5:])
    tabulate = EXHIBITS["lora_rank"].tabulate
    more = tabulate(tables | {"runs": pd.concat([runs, tried], ignore_index=True)}, "nano")
    columns = ["rank", "method", "learning_rate", "accuracy", "seeds"]
    pd.testing.assert_frame_equal(more[columns], tabulate(tables, "nano")[columns])
    assert more["rank"].tolist()[:7] == [1, 2, 4, 8, 16, 32, 0], "full fine-tuning is the largest"


def test_colours_are_told_apart_without_colour_vision():
    # Machado et al. 2009, severity 1.0, applied to linear RGB.
    blindness = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }
    for matrix in blindness.values():
        seen = [np.array(matrix) @ (np.array(to_rgb(colour)) ** 2.2) for colour in COLOURS.values()]
        # The nearest pair (grey and green) is 0.10 apart; 0.05 is about two just-noticeable steps at this lightness.
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 0.05
    assert len(set(MARKERS.values())) == len(MARKERS)


def test_saved_twice_the_bytes_are_equal(tables: dict[str, pd.DataFrame], tmp_path: Path):
    first, second = (save_figure(draw("cost_to_reach", tables), tmp_path / folder / "cost") for folder in "ab")
    assert [path.name for path in first] == ["cost.png", "cost.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert round(Image.open(first[0]).info["dpi"][0]) == 150 and "<dc:date>" not in first[1].read_text()


def test_the_order_of_rows_and_the_readers_style_change_nothing(tables: dict[str, pd.DataFrame], tmp_path: Path):
    shuffled = {name: frame.sample(frac=1, random_state=5) for name, frame in tables.items()}
    plain = save_figure(draw("full_vs_sparse", tables), tmp_path / "plain")
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "savefig.bbox": "tight"}):
        other = save_figure(draw("full_vs_sparse", shuffled), tmp_path / "other")
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


@pytest.mark.parametrize("name", NAMES)
def test_no_text_lies_on_another_or_leaves_the_page(name: str, drawn: dict[str, Figure]):
    figure = drawn[name]
    with figure_style():
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


@pytest.mark.parametrize("name", NAMES)
def test_four_settings_are_read_unscaled_on_a_page_of_1280_pixels(name: str, tables: dict[str, pd.DataFrame]):
    assert EXHIBITS[name].show(tables, "nano").width <= 1280


def test_the_mean_of_a_drift_is_geometric(tables: dict[str, pd.DataFrame]):
    table = EXHIBITS["regularisation"].tabulate(tables, "nano").query("column == 'kl_to_base'").set_index(["setting", "method"])
    runs = with_setting(tables["runs"]).query("ablation == 'full_vs_sparse' and setting == 'word_problems after'")
    logs = {method: np.log(own.set_index("seed")["kl_to_base"]) for method, own in runs.groupby("method") if method != "base"}
    for method, own in logs.items():
        row = table.loc["word_problems after", method]
        assert row["value"] == pytest.approx(np.exp(own.mean())) and row["value_low"] < row["value"] < row["value_high"]
    ratio = table.loc[("word_problems after", "t_spmo"), "kl_over_grpo"]
    assert ratio == pytest.approx(np.exp((logs["t_spmo"] - logs["grpo"]).mean()))


def test_a_base_with_more_items_stands_on_those_of_the_comparison_and_beside_it_on_all():
    """With the base on all its items beside gains over the shared ones, the printed gain was no difference of printed numbers."""
    tables = synthetic.headline(items=60, base_items=200, seeds=2)
    shown = EXHIBITS["full_vs_sparse"].show(tables, "nano")
    table = shown.table.set_index(["setting", "method"])
    assert set(table["items"]) == {60} and set(table["all_items"].dropna()) == {200}
    for (setting, method), row in table.drop("base", level=1).iterrows():
        assert row["gain"] == pytest.approx(row["accuracy"] - table.loc[(setting, "base"), "accuracy"]), method
    runs = with_setting(tables["runs"])
    base = runs.loc[(runs["method"] == "base") & (runs["setting"] == "word_problems after"), "run_id"].item()
    answered = tables["items"].loc[tables["items"]["run_id"] == base, "correct"]
    row = table.loc[("word_problems after", "base")]
    assert (row["accuracy"], row["accuracy_all_items"]) == pytest.approx((100 * answered[:60].mean(), 100 * answered.mean()))
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    words = _words(shown.figure)
    assert "60 test items" in words and "200 of word problems and 200 of multiplication" in words
    assert table["accuracy"].drop("base", level=1).notna().all() and table["collapsed"].eq(0).all()


def test_held_out_accuracy_has_its_own_number_of_items():
    tables = synthetic.headline(items=60, seeds=2)
    items = tables["items"]
    held_out = items[items["item_id"].str.startswith("word_problems-000")].assign(split="held_out")
    shown = EXHIBITS["full_vs_sparse"].show(tables | {"items": pd.concat([items, held_out])}, "nano").table
    counts = shown.set_index(["setting", "method"])["held_out_items"]
    assert counts["word_problems after", "grpo"] == 10 and pd.isna(counts["multiplication", "grpo"])


def test_items_of_a_small_split_are_counted_and_not_taken_from_the_limit():
    """Of 20 validation items of a reader's own, eval_items = 200 answered: every table said 200."""
    tables = synthetic.tuned(synthetic.headline(items=60, seeds=2))
    runs, items = tables["runs"].assign(eval_items=200, validation_accuracy=0.5), tables["items"]
    small = items[items["item_id"].str.contains(r"-00[01]\d$")]
    tables |= {"runs": runs, "items": pd.concat([items, small.assign(split="validation"), small.assign(split="train")])}
    for name in ("learning_curves", "cost_to_reach", "learning_rate"):
        assert set(EXHIBITS[name].tabulate(tables, "nano")["validation_items"]) == {20}, name
    tables["items"] = items  # tables of before these were kept: the limit is all there is
    assert set(EXHIBITS["learning_curves"].tabulate(tables, "nano")["validation_items"]) == {200}


def test_collapsed_runs_are_counted_and_crossed(tables: dict[str, pd.DataFrame]):
    runs = tables["runs"].copy()
    one = (runs["ablation"] == "full_vs_sparse") & (runs["task"] == "multiplication") & (runs["method"] == "s_grpo")
    runs.loc[one & (runs["seed"] == 1), "status"] = "collapsed"
    shown = EXHIBITS["full_vs_sparse"].show(tables | {"runs": runs}, "nano")
    counts = shown.table.set_index(["setting", "method"])["collapsed"]
    assert counts["multiplication", "s_grpo"] == 1 == counts.sum()
    assert "black ×: 1 collapsed" in _words(shown.figure)


def test_flops_are_tokens_times_those_of_one():
    tables = _prices()
    assert np.isnan(prices(tables, "nano")["tflop"]).all(), "not measured is missing"
    values = {"flops_sampled_token": 10.0, "flops_updated_token": 30.0}
    row = {"profile": "nano", "task": "word_problems", "method": "generated"}
    tables["credit"] = pd.DataFrame([row | {"quantity": name, "value": value} for name, value in values.items()])
    (priced,) = prices(tables, "nano").to_dict("records")
    assert priced["tflop"] == pytest.approx(62.5 * (8 * 10 + 2 * 30) / 1e12)
