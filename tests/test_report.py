"""The report: what the tables say and nothing else, in one file that needs no other and runs no script."""

from __future__ import annotations

import datetime
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import synthetic_tables as synthetic

from replication.config import ExperimentConfig, load_profile
from replication.errors import UserError
from replication.report import page as report_page
from replication.report import readings, readings_ablations, summaries
from replication.report import rows as report_rows
from replication.report.figures import FIGURES
from replication.report.pages import formula, render, with_formulas
from replication.statistics import contrasts
from replication.statistics.comparisons import detectable_differences, paired_tests, verdicts
from replication.tables.build import read_tables, write_tables

MANIFEST = {
    "commit": "0" * 40,
    "run_commits": ["0" * 40],
    "runs_dirty": False,
    "cpu": "a CPU",
    "cores": 2,
    "packages": {"torch": "2"},
}
ATTACK = "loss </td><script>alert(1)</script>"


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    """Made-up tables with the columns of the config that the report shows."""
    made = synthetic.full(3)
    runs = made["runs"]
    runs["steps"] = runs["steps_done"]
    runs["keep_probability"] = runs["method"].map({"s_grpo": 0.3})
    runs["reason"] = runs["status"].map({"diverged": ATTACK})
    return made


@pytest.fixture(scope="module")
def folder(tables, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("results")
    write_tables(tables, path, MANIFEST)
    assert report_page.build(path, "nano") == path / "report.html"
    return path


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "report.html").read_text()


class Reader(HTMLParser):
    """Every tag closed, every address seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.addresses, self.tags, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_stands_alone(page):
    reader = read(page)
    assert "script" not in reader.tags and "link" not in reader.tags
    assert all(address.startswith("data:image/") for address in reader.addresses)
    assert reader.tags.count("img") == len(FIGURES)
    assert 'name="viewport"' in page and "@import" not in page and "url(" not in page


def test_what_a_run_left_behind_stays_text(page):
    assert ATTACK in "".join(read(page).text)


def test_verdicts_are_those_of_the_csv(page, folder, tables):
    written = read_tables(folder)["verdicts"]
    fresh = verdicts(report_page.CLAIMS, tables)
    assert written["verdict"].tolist() == fresh["verdict"].tolist()
    text = " ".join("".join(read(page).text).split())
    for row in report_rows.verdict_rows(fresh):
        assert row["claim"] in text and row["ours"] in text
        assert " ".join(row["text"].split()) in text
    assert page.count('class="mark ') == len(fresh)


def test_each_claim_of_the_paper_is_followed_by_its_counterpart(tables):
    rows = report_rows.verdict_rows(verdicts(report_page.CLAIMS, tables))
    order = [row["claim"] for row in rows]
    assert len(set(order)) == len(order) == len(verdicts(report_page.CLAIMS, {}))
    for before, row in zip(rows, rows[1:], strict=False):
        if row["counterpart"]:
            assert row["counterpart"] in (before["claim"], before["counterpart"])


def test_building_twice_gives_the_same_bytes(folder, page):
    report_page.build(folder, "nano")
    assert (folder / "report.html").read_text() == page


def test_diverged_runs_are_counted_and_listed(page, tables):
    runs = tables["runs"]
    count = int((runs["status"] == "diverged").sum())
    assert count and f"{count} rows did not simply end" in page


def test_smoke_numbers_are_called_what_they_are(tables, tmp_path):
    smoke = {**tables, "runs": tables["runs"].assign(profile="smoke")}
    write_tables(smoke, tmp_path, MANIFEST)
    text = report_page.build(tmp_path, "smoke").read_text()
    assert "None of them is a result" in text
    judged = read_tables(tmp_path)["verdicts"]
    assert set(judged["verdict"]) == {"not run"}


def test_a_report_of_almost_nothing_says_not_run(tables, tmp_path):
    pending = tables["runs"].head(4).assign(status="pending", accuracy=float("nan"))
    write_tables({"runs": pending}, tmp_path, MANIFEST)
    text = report_page.build(tmp_path, "nano").read_text()
    read(text)
    assert text.count("Not run.") >= len(FIGURES)


def test_without_tables_there_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no tables"):
        report_page.build(tmp_path, "nano")


# Words and tables ----------------------------------------------------------------------------------------------------------


def test_every_figure_has_its_sentences():
    assert set(report_page._FIGURE_TEXTS) == set(FIGURES)


def test_sentences_hold_the_numbers_of_the_tables(tables):
    said = " ".join(readings.headline(tables, "nano"))
    for row in summaries.headline_table(tables, "nano").to_dict("records"):
        assert f"{row['accuracy']:.1f} % [{row['low']:.1f}, {row['high']:.1f}]" in said
    runs = tables["runs"]
    grpo = runs[(runs["ablation"] == "full_vs_sparse") & (runs["method"] == "grpo") & (runs["task"] == "word_problems")]
    assert f"GRPO {100 * grpo['accuracy'].mean():.1f} %" in said


def test_longer_numbers_are_a_number_or_not_measured_and_never_zero(tables):
    runs = tables["runs"]
    grpo = runs[(runs["ablation"] == "full_vs_sparse") & (runs["method"] == "grpo") & (runs["task"] == "word_problems")]
    mean = 100 * grpo["longer_numbers_accuracy"].mean()
    assert report_rows.headline(tables, "nano")[1]["longer"] == f"{mean:.1f}"
    assert f"GRPO {mean:.1f} %" in readings.headline(tables, "nano")[1]
    without = {**tables, "runs": runs.drop(columns="longer_numbers_accuracy")}
    assert {row["longer"] for row in report_rows.headline(without, "nano")} == {"not measured"}
    assert readings.headline(without, "nano")[1] == "With longer numbers than any trained on: not measured."


@pytest.mark.parametrize(
    "read",
    [
        *(readings.headline, readings.learning_curves, readings.cost, readings.cost_to_reach),
        *(readings_ablations.learning_rate, readings_ablations.token_fraction, readings_ablations.lora_rank),
    ],
)
def test_no_tables_no_numbers(read):
    assert read({}, "nano") == ["Not run."]


def test_tuning_is_chosen_on_validation_alone(tables):
    table = summaries.tuning_table(tables, "nano")
    for _, own in table.groupby(["task", "method"]):
        assert own["chosen"].sum() == 1
        assert own.loc[own["chosen"], "validation_accuracy"].item() == own["validation_accuracy"].max()
    swapped = {**tables, "runs": tables["runs"].assign(accuracy=1 - tables["runs"]["accuracy"])}
    assert summaries.tuning_table(swapped, "nano")["chosen"].tolist() == table["chosen"].tolist()


def test_rank_points_are_read_at_the_rate_that_validation_chooses():
    def row(rate, seed, validation, accuracy):
        shared = {"ablation": "lora_rank", "profile": "nano", "task": "word_problems", "method": "grpo", "lora_rank": 4}
        name = f"{rate}-{seed}"
        rest = {"status": "done", "learning_rate": rate, "seed": seed, "validation_accuracy": validation, "accuracy": accuracy}
        return {"run_id": name, **shared, **rest}

    # The second seed of one rate alone counts in its test accuracy, not in the choice.
    runs = pd.DataFrame([row(1e-3, 0, 0.6, 0.1), row(1e-2, 0, 0.5, 0.9), row(1e-3, 1, 0.2, 0.3)])
    (point,) = summaries.lora_rank_table({"runs": runs}, "nano").to_dict("records")
    assert (point["learning_rate"], point["seeds"], point["rates_tried"]) == (1e-3, 2, 2)
    assert point["accuracy"] == pytest.approx(20.0)
    runs = pd.concat([runs, pd.DataFrame([row(1e-2, 1, 0.9, 0.8)])])
    (point,) = summaries.lora_rank_table({"runs": runs}, "nano").to_dict("records")
    assert point["learning_rate"] == 1e-2 and point["accuracy"] == pytest.approx(85.0)


def test_the_gap_at_a_rank_is_that_of_paired_seeds_with_its_interval():
    def row(method, seed, accuracy):
        shared = {"ablation": "lora_rank", "profile": "nano", "task": "word_problems", "lora_rank": 4, "status": "done"}
        shared |= {"method": method, "learning_rate": 1e-3, "seed": seed, "validation_accuracy": 0.5, "accuracy": accuracy}
        return {"run_id": f"{method}-{seed}", **shared}

    grpo, sparse = [0.70, 0.80, 0.90], [0.68, 0.76, 0.84]  # differences -2, -4, -6 points
    rows = [row("grpo", n, a) for n, a in enumerate(grpo)] + [row("s_grpo", n, a) for n, a in enumerate(sparse)]
    rows.append(row("s_grpo", 3, 0.1))  # a seed without a partner does not count
    items = [answer for one in rows for answer in answered(one["run_id"], one["accuracy"])]
    tables = {"runs": pd.DataFrame(rows), "ablation_items": pd.DataFrame(items)}
    (gap,) = contrasts.rank_gap_table(tables, "nano").to_dict("records")
    assert gap["seeds"] == 3 and gap["gap"] == pytest.approx(-4)
    assert gap["low"] < -4 < gap["high"]
    said = readings_ablations.lora_rank(tables, "nano")
    interval = f"[{gap['low']:+.1f}, {gap['high']:+.1f}]"
    wanted = f"S-GRPO minus full-token GRPO, seeds and items in pairs, is -4.0 points {interval} at rank 4"
    assert any(wanted in line for line in said)
    assert contrasts.rank_gap_table({}, "nano").empty


def test_a_rate_tuned_at_the_edge_of_its_grid_is_named():
    def row(method, rate, validation):
        shared = {"ablation": "lora_rank", "profile": "nano", "task": "word_problems", "lora_rank": 0, "status": "done", "seed": 0}
        shared |= {"method": method, "learning_rate": rate, "validation_accuracy": validation, "accuracy": 0.5}
        return {"run_id": f"{method}-{rate}", **shared}

    low, middle = [(1e-4, 0.9), (3e-4, 0.8), (1e-3, 0.7)], [(1e-4, 0.8), (3e-4, 0.9), (1e-3, 0.7)]
    at_edge = [row("grpo", *point) for point in low]
    inside = [row("s_grpo", *point) for point in middle]
    said = readings_ablations.lora_rank({"runs": pd.DataFrame(at_edge + inside)}, "nano")[-1]
    assert "GRPO at full fine-tuning (0.0001, the lowest tried)" in said and "S-GRPO" not in said
    assert readings_ablations.lora_rank({"runs": pd.DataFrame(inside)}, "nano")[-1].startswith("No chosen rate lies at the edge")
    # A rank run at one rate was tuned elsewhere: nothing can be said of an edge.
    alone = readings_ablations.lora_rank({"runs": pd.DataFrame(at_edge[:1])}, "nano")
    assert not any("edge" in sentence for sentence in alone)


def test_a_plan_says_how_many_runs_of_how_many_steps():
    from replication.ablations import PlannedRun

    configs = [load_profile("nano", method="grpo", seed=seed) for seed in (0, 1)]
    frame = pd.DataFrame(
        [{"run_id": str(c.seed), "ablation": a, **c.model_dump()} for a in ("lora_rank", "token_fraction") for c in configs]
    )
    assert "2 runs" in readings.plan_sentence(frame) and f"({2 * configs[0].steps} steps" in readings.plan_sentence(frame)
    assert "2 further rows" in readings.plan_sentence(frame)
    assert summaries.plan_table(frame)["runs"].tolist() == [2, 2]
    assert PlannedRun("lora_rank", configs[0]).config is configs[0]


def test_the_split_of_svamp_is_named_only_where_it_was_run(page, tmp_path):
    assert "700/300" not in page  # the nano lab has no SVAMP
    tables = synthetic.headline(profile="paper", tasks=("svamp",), items=20, seeds=1)
    runs, items = tables["runs"], tables["items"]
    assert readings.svamp_split(tables, "paper") == "", "not recorded"
    for source, said in ((None, "all runs used the Hub's own 700/300 split"), ("a.json", "all runs used a 700/300 split of")):
        runs["svamp_source"] = source
        assert said in readings.svamp_split(tables, "paper") and readings.svamp_split(tables, "nano") == ""
    runs.loc[runs["method"] == "base", "svamp_source"] = None
    runs["steps"], runs["keep_probability"] = runs["steps_done"], runs["method"].map({"s_grpo": 0.3})
    both = readings.svamp_split(tables, "paper")
    assert "3 runs used a 700/300 split of the official file by content hash and 1 the Hub's" in both
    write_tables(tables, tmp_path, MANIFEST)
    assert both.replace("'", "&#39;") in report_page.build(tmp_path, "paper").read_text()
    made_up = {**tables, "items": items.assign(item_id="made-up-" + items["item_id"])}
    assert "made up for a dry run" in readings.svamp_split(made_up, "paper")
    assert readings.svamp_split({**tables, "runs": runs.assign(status="pending")}, "paper") == ""


def test_power_names_the_differences_that_these_seeds_and_items_would_show(tables):
    said = readings.power(tables, "nano")
    for row in detectable_differences(tables, "nano").itertuples():
        assert f"{summaries.METHODS[row.method]} on {summaries.TASKS[row.task]} {row.detectable:.1f} points" in said
    assert "3 seeds" in said and readings.power({}, "nano") == "Not run."


def answered(run_id: str, accuracy: float, items: int = 100) -> list[dict]:
    return [{"run_id": run_id, "item_id": f"i{n:03d}", "correct": int(n < round(accuracy * items))} for n in range(items)]


def test_tokens_are_compared_by_which_at_the_same_share():
    row = {"ablation": "token_fraction", "profile": "nano", "task": "word_problems", "method": "s_grpo", "status": "done"}
    row |= {"kept_fraction": 0.1, "seed": 0}
    picked = [row | {"run_id": s, "selector": s, "token_share": 0.1, "accuracy": a} for s, a in (("latest", 0.5), ("entropy", 0.9))]
    rule = {"selector": "rule", "keep_probability": 0.3, "max_kept_tokens": 12, "denominator": "completion", "accuracy": 0.8}
    said = readings_ablations.token_fraction({"runs": pd.DataFrame([*picked, row | {"run_id": "rule"} | rule])}, "nano")
    assert said[-1] == "With 10 % of each completion's tokens, by which: entropy 90.0 %, latest 50.0 %."
    settings = summaries.token_fraction_table({"runs": pd.DataFrame([row | {"run_id": "rule"} | rule])}, "nano")["setting"]
    assert settings.tolist() == ["rule, keep probability 0.3, at most 12, divided by the completion"]


def test_contrasts_of_the_token_fraction_are_paired_by_seed_and_item():
    row = {"ablation": "token_fraction", "profile": "nano", "task": "word_problems", "method": "s_grpo", "status": "done"}
    rule = {"selector": "rule", "keep_probability": 0.3, "max_kept_tokens": 12, "denominator": "kept", "kept_fraction": 0.38}
    share = {"token_share": 0.4, "kept_fraction": 0.4, "denominator": "kept"}
    settings = {
        "random": share | {"selector": "random"},
        "latest": share | {"selector": "latest"},
        "far": share | {"selector": "random", "token_share": 0.1},
        "rule": rule,
        "other": rule | {"denominator": "completion"},
        "entropy": share | {"selector": "entropy"},
        "full": {"method": "grpo", "selector": "all", "kept_fraction": 1.0},
    }
    accuracy = {"random": (0.5, 0.6, 0.7, 0.9), "latest": (0.52, 0.61, 0.73), "far": (0.1, 0.1)}
    accuracy |= {"rule": (0.8, 0.7), "other": (0.8, 0.7), "entropy": (0.9, 0.9), "full": (0.95, 0.93)}
    runs, items = [], []
    for name, values in accuracy.items():
        for seed, value in enumerate(values):
            runs.append(row | settings[name] | {"run_id": f"{name}{seed}", "seed": seed, "accuracy": value})
            items += answered(f"{name}{seed}", value)
    tables = {"runs": pd.DataFrame(runs), "ablation_items": pd.DataFrame(items)}
    gaps = contrasts.selection_gap_table(tables, "nano").set_index(["setting", "reference"])
    other = ("S-GRPO with weights by all tokens of a completion", "by the kept ones")
    assert gaps["gap"].to_dict() == pytest.approx(
        # The fourth seed of random has no partner; the rule keeps 38 %, so random at 40 % is its neighbour.
        {("the latest tokens", "random ones"): 2.0, ("the tokens of highest entropy", "random ones"): 35.0,
         ("the tokens of highest entropy", "all tokens"): -4.0, ("the tokens of S-GRPO's rule", "40 % at random"): 20.0, other: 0.0}
    )  # fmt: skip
    assert gaps["seeds"].tolist() == [2, 3, 2, 2, 2]
    assert (gaps["low"] <= gaps["gap"]).all() and (gaps["gap"] <= gaps["high"]).all()
    said = " ".join(readings_ablations.token_fraction(tables, "nano"))
    assert "The latest tokens minus random ones, seeds and items in pairs, by share of the tokens: +2.0 points [" in said
    assert "The tokens of S-GRPO's rule minus 40 % at random, seeds and items in pairs" in said


def test_a_gap_of_ranks_carries_the_chance_of_the_items_too():
    """Three seeds that all differ by one and the same item had an interval of no width."""
    row = {"ablation": "lora_rank", "profile": "nano", "task": "word_problems", "status": "done", "lora_rank": 8}
    row |= {"learning_rate": 1e-3, "validation_accuracy": 0.8}
    runs, items = [], []
    for method, value in (("grpo", 0.80), ("s_grpo", 0.79)):
        for seed in range(3):
            runs.append(row | {"run_id": f"{method}{seed}", "method": method, "seed": seed, "accuracy": value})
            items += answered(f"{method}{seed}", value)
    gap = contrasts.rank_gap_table({"runs": pd.DataFrame(runs), "ablation_items": pd.DataFrame(items)}, "nano").iloc[0]
    assert gap["gap"] == pytest.approx(-1.0) and gap["low"] < -1.5 and gap["high"] >= 0.0
    assert pd.isna(contrasts.rank_gap_table({"runs": pd.DataFrame(runs)}, "nano").iloc[0]["low"]), "no answers, no interval"


def test_pairs_and_corrected_p_values_are_on_the_page(page, tables):
    text = " ".join("".join(read(page).text).split())
    assert "McNemar" in text and "after Holm" in text
    tests = paired_tests(tables, "nano")
    assert len(report_rows.paired(tables, "nano")) == int((tests["a"] != "base").sum()) > 0


def test_the_log_of_negative_results_is_dated_in_order_and_shows_the_verdicts_of_today(page, tables):
    judged = verdicts(report_page.CLAIMS, tables)
    entries = report_rows.negative_results(judged)
    days = [datetime.date.fromisoformat(entry["date"]) for entry in entries]
    assert days == sorted(days) and len(entries) >= 5
    text = " ".join("".join(read(page).text).split())
    for entry in entries:
        assert all(entry[name] for name in ("what", "expected", "found", "follows"))
        assert entry["date"] in text and entry["what"] in text and entry["now"] in text
        for claim in entry["claims"]:
            row = judged.set_index("claim").loc[claim]
            assert f"{claim} {row['verdict']}, " in entry["now"]


# The ledger --------------------------------------------------------------------------------------------------------------------


def test_every_reconstructed_setting_is_in_the_ledger():
    ledger = report_rows.ledger()
    assert ledger["schema_version"] == 1
    listed = [name for entry in ledger["deviations"] for name in entry["fields"]]
    marked = {name for name, field in ExperimentConfig.model_fields.items() if "[R]" in (field.description or "")}
    assert set(listed) == marked and len(listed) == len(set(listed))
    for entry in ledger["deviations"]:
        assert entry["mark"] in ("R", "nano") and all(entry[name] for name in ("id", "topic", "choice", "why", "effect"))


# Pages -----------------------------------------------------------------------------------------------------------------------


def test_formulas_become_images_with_their_source_as_text():
    made = formula(r"\frac{1}{G}\sum_i A_i")
    assert "data:image/svg+xml" in made and 'alt="\\frac{1}{G}\\sum_i A_i"' in made
    assert formula("x_i") == formula("x_i")
    text = with_formulas("cost `$5` and $x$ and\n$$\ny = 2\n$$\n")
    assert "`$5`" in text and text.count("<img") == 2 and 'class="display"' in text


def test_templates_escape_what_they_are_given():
    made = render("notebook.html", title="<script>", cells=[], show_code=True, highlight_style="")
    assert "<title>&lt;script&gt;</title>" in made


def test_tables_in_notebooks_are_escaped_and_in_few_digits():
    from replication.notebooks.display import readable

    frame = pd.DataFrame(
        {"method": ["s_grpo"], "kl_to_base": [0.123456], "accuracy": [80.16], "note": ["<script>"], "empty": [None]}
    )
    made = readable(frame).data
    assert "S-GRPO" in made and ">0.123<" in made and ">80.2<" in made and "&lt;script&gt;" in made and "None" not in made
    assert "kl to base" in made
