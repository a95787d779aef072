"""The report: what the tables say and nothing else, without a script, and with every figure stored once."""

from __future__ import annotations

import datetime
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import synthetic_tables as synthetic

from replication.config import ExperimentConfig, load_profile
from replication.errors import UserError
from replication.names import CLAIMS, METHOD_LABELS
from replication.report import (
    EXHIBITS,
    build,
    conclusions,
    find_tables,
    limits,
    negative_results,
    notebook_page,
    plan_sentence,
    plan_table,
    power,
    short_answer,
    state_table,
    table_html,
    verdict_rows,
    with_formulas,
)
from replication.report.appendix import ledger
from replication.report.html import formula
from replication.report.wording import interval, number, percent, shown_table, span
from replication.statistics import CREDIT, SPARSITY, detectable_differences, verdicts, with_setting
from replication.tables import KINDS, frame, read_tables, write_tables

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
    runs["token_share"], runs["max_kept_tokens"], runs["cutoff"] = float("nan"), float("nan"), float("nan")
    runs["reason"] = runs["status"].map({"diverged": ATTACK})
    return made


@pytest.fixture(scope="module")
def folder(tables, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("results")
    write_tables(tables, path, MANIFEST)
    assert build(path, "nano") == path / "report.html"
    return path


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "report.html").read_text()


class Reader(HTMLParser):
    """Every tag closed, every address and text seen, and which texts a click must unfold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.addresses, self.tags, self.text, self.visible = [], [], [], [], []
        self.feed(page)
        assert self.open == []
        self.words = " ".join("".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "details" not in self.open:
            self.visible.append(data)


def test_the_page_refers_to_its_figures_and_to_nothing_else(page, folder, tables):
    reader = Reader(page)
    assert "script" not in reader.tags and "link" not in reader.tags
    figures = [address for address in reader.addresses if address != "#not-run"]
    measured = [name for name, exhibit in EXHIBITS.items() if len(exhibit.tabulate(tables, "nano"))]
    assert figures == [f"figures/{name}.png" for name in measured]
    assert all((folder / address).exists() for address in figures)
    assert 'name="viewport"' in page and "@import" not in page and "url(" not in page


def test_what_a_run_left_behind_stays_text(page):
    assert ATTACK in "".join(Reader(page).text)


def test_conclusions_come_first_then_verdicts_then_exhibits_and_the_rest_is_folded(page, tables):
    visible = " ".join("".join(Reader(page).visible).split())
    said = conclusions(verdicts(CLAIMS, tables), tables, "nano")
    first_exhibit = EXHIBITS["full_vs_sparse"].title
    places = [visible.index(" ".join(text.split())) for text in (*said, "Verdicts", "What was measured", f" {first_exhibit} ")]
    assert len(said) == 5 and places == sorted(places)
    ledger_words = ledger()["deviations"][0]["choice"]
    assert ledger_words in Reader(page).words and ledger_words not in visible


def test_conclusions_hold_the_numbers_and_verdicts_of_the_tables(tables):
    judged = verdicts(CLAIMS, tables)
    said = conclusions(judged, tables, "nano")
    at = EXHIBITS["full_vs_sparse"].tabulate(tables, "nano").set_index(["setting", "method"])["accuracy"]
    for method in ("base", "s_grpo", "t_spmo"):
        assert percent(at["word_problems after", method]) in said[0]
    gains = {setting: at[setting, "grpo"] - at[setting, "base"] for setting in at.index.levels[0]}
    products = gains.pop("multiplication")
    assert f"{span(gains.values())} points on word problems and {number(products)} points on multiplication" in said[1]
    assert all(claim not in " ".join(said) for claim in judged["claim"]), "the verdict table has the names"
    assert len(conclusions(verdicts(CLAIMS, {}), {}, "nano")) == 1


def test_verdicts_are_those_of_the_csv(page, folder, tables):
    written, fresh = read_tables(folder)["verdicts"], verdicts(CLAIMS, tables)
    assert written["verdict"].tolist() == fresh["verdict"].tolist()
    words, rows = Reader(page).words, verdict_rows(fresh)
    for row in rows:
        assert row["claim"] in words and row["ours"] in words
        assert " ".join(row["text"].split()) in words or row["verdict"] == "not run"
    judged = [row for row in rows if row["verdict"] != "not run"]
    assert page.count('class="mark ') == len(judged), "claims that were not run share one line"


def test_each_claim_of_the_paper_is_followed_by_its_counterpart(tables):
    rows = verdict_rows(verdicts(CLAIMS, tables))
    order = [row["claim"] for row in rows]
    assert len(set(order)) == len(order) == len(verdicts(CLAIMS, {}))
    for before, row in zip(rows, rows[1:], strict=False):
        if row["counterpart"]:
            assert row["counterpart"] in (before["claim"], before["counterpart"])


def test_building_twice_gives_the_same_bytes(folder, page):
    figures = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    build(folder, "nano")
    assert (folder / "report.html").read_text() == page
    assert {path.name: path.read_bytes() for path in (folder / "figures").iterdir()} == figures


def test_smoke_numbers_are_called_what_they_are(tables, tmp_path):
    smoke = {**tables, "runs": tables["runs"].assign(profile="smoke")}
    write_tables(smoke, tmp_path, MANIFEST)
    text = build(tmp_path, "smoke").read_text()
    assert "None of them is a result" in text and "Two kinds of uncertainty" in text
    assert set(read_tables(tmp_path)["verdicts"]["verdict"]) == {"not run"}


def test_a_report_of_almost_nothing_says_not_run(tables, tmp_path):
    pending = tables["runs"].head(4).assign(status="pending", accuracy=float("nan"))
    write_tables({"runs": pending}, tmp_path, MANIFEST)
    text = build(tmp_path, "nano").read_text()
    words = " ".join(Reader(text).words.split())
    assert "<img" not in text and all(exhibit.title in words for exhibit in EXHIBITS.values())


def test_one_seed_gives_no_interval_to_be_better_by():
    """Two intervals "stood alone" that did not exist, and the accuracy was that "over 1 seeds"."""
    tables = synthetic.headline(items=40, seeds=1)
    better, *more = EXHIBITS["regularisation"].show(tables, "nano").sentences
    assert "it takes two seeds" in better and not more
    assert "over 1 seed:" in EXHIBITS["full_vs_sparse"].show(tables, "nano").sentences[0]


def test_without_tables_there_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no tables"):
        build(tmp_path, "nano")


def test_prompts_alone_do_not_hide_the_committed_tables(folder, tmp_path, monkeypatch):
    """After `make prompts` in a fresh clone the notebooks showed its one table, and "not run" for all else."""
    monkeypatch.setattr("replication.report.page.RESULTS", tmp_path / "committed")
    write_tables({"prompts": frame([], KINDS["prompts"], ["profile"])}, tmp_path / "own")
    assert find_tables("nano", tmp_path / "own") == ({}, None)
    shutil.copytree(folder, tmp_path / "committed" / "nano")
    found, where = find_tables("nano", tmp_path / "own")
    assert where == tmp_path / "committed" / "nano" and len(found["runs"])


# Sentences -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXHIBITS)
def test_an_exhibit_says_at_most_two_sentences(name, tables):
    assert 1 <= len(EXHIBITS[name].show(tables, "nano").sentences) <= 2


def _said(name, tables) -> tuple[pd.DataFrame, str]:
    shown = EXHIBITS[name].show(tables, "nano")
    return shown.table, " ".join(shown.sentences)


def test_sentences_hold_the_numbers_of_the_tables(tables):
    table, said = _said("full_vs_sparse", tables)
    for row in table[table["method"] != "base"].itertuples():
        assert f"{METHOD_LABELS[row.method]} {percent(row.accuracy)}" in said
    table, said = _said("learning_rate", tables)
    for _, own in table[table["method"] == "grpo"].groupby("setting"):
        assert f"{number(own['accuracy'].min())} to {percent(own['accuracy'].max())}" in said
    table, said = _said("token_fraction", tables)
    assert percent(table.iloc[0]["accuracy"]) in said and percent(table.iloc[0]["kept_fraction"]) in said
    table, said = _said("lora_rank", tables)
    for _, own in table.groupby("method"):
        assert f"{number(own.iloc[0]['accuracy'])} to {percent(own.iloc[-1]['accuracy'])}" in said
    table, said = _said("cost_to_reach", tables)
    for _, values in table[table["method"] != "grpo"].groupby("method")["tokens_in_loss_%_of_grpo"]:
        assert f"{span(values)} %" in said


def test_a_curve_that_still_rises_is_said_to(tables):
    table, said = _said("learning_curves", tables)
    rising = table[(table["rise_in_last_third"] >= 1) & (table["rise_in_last_third_low"] > 0)]
    assert len(rising) and all(number(value) in said for value in rising["rise_in_last_third"])
    flat = {**tables, "curves": tables["curves"].assign(value=0.5)}
    assert (EXHIBITS["learning_curves"].tabulate(flat, "nano")["rise_in_last_third"] == 0).all()


def test_better_and_worse_side_effects_are_those_whose_interval_leaves_0_out(tables):
    runs = tables["runs"].copy()
    sparse = (runs["method"] == "t_spmo") & (with_setting(runs)["setting"] == "word_problems after")
    runs.loc[sparse, "held_out_accuracy"] = runs.loc[sparse, "held_out_accuracy"] + 0.3
    better, worse = EXHIBITS["regularisation"].show({**tables, "runs": runs}, "nano").sentences
    said = next(part for part in better.split("; ") if "T-SPMO trained on word problems (noise after)" in part)
    assert "held-out templates" in said
    said = [part for part in worse.split("; ") if "T-SPMO trained on word problems (noise after)" in part]
    assert "held-out templates" not in "".join(said)


def test_side_effects_say_how_many_comparisons_they_pick_from_and_leave_the_gap_to_few_items(tables):
    table, said = _said("regularisation", tables)
    compared = table[(table["better"] != 0) & (table["minus_grpo"].notna() | table["kl_over_grpo"].notna())]
    assert f" {len(compared)} intervals" in said
    assert "train_minus_test" not in set(table["column"])


def test_longer_numbers_are_a_number_or_not_measured_and_never_zero(tables):
    table, _ = _said("regularisation", tables)
    runs, setting = with_setting(tables["runs"]), "word_problems after"
    grpo = runs[(runs["ablation"] == "full_vs_sparse") & (runs["method"] == "grpo") & (runs["setting"] == setting)]
    shown = table[(table["measure"] == "longer numbers") & (table["method"] == "grpo") & (table["setting"] == setting)]
    assert shown["value"].item() == pytest.approx(100 * grpo["longer_numbers_accuracy"].mean())
    without, _ = _said("regularisation", {**tables, "runs": runs.drop(columns="longer_numbers_accuracy")})
    assert "longer numbers" not in set(without["measure"])


def test_tuning_is_chosen_on_validation_alone(tables):
    tabulate = EXHIBITS["learning_rate"].tabulate
    table = tabulate(tables, "nano")
    for _, own in table.groupby(["setting", "method"]):
        assert own["chosen"].sum() == 1
        assert own.loc[own["chosen"], "validation_accuracy"].item() == own["validation_accuracy"].max()
    counted = tabulate({**tables, "runs": tables["runs"].assign(eval_items=128)}, "nano")
    assert set(counted["validation_items"]) == {128} and set(counted["items"]) == {300}
    swapped = {**tables, "runs": tables["runs"].assign(accuracy=1 - tables["runs"]["accuracy"])}
    assert tabulate(swapped, "nano")["chosen"].tolist() == table["chosen"].tolist()
    rates = synthetic.RATE
    assert all(row.used == (row.learning_rate == rates[row.method]) for row in table.itertuples())


# Ablations: settings, gaps, edges -------------------------------------------------------------------------------------------


def rank_run(method, rate, seed, validation, accuracy, rank=4) -> dict:
    shared = {"ablation": "lora_rank", "profile": "nano", "task": "word_problems", "lora_rank": rank, "status": "done"}
    own = {"method": method, "learning_rate": rate, "seed": seed, "validation_accuracy": validation, "accuracy": accuracy}
    return {"run_id": f"{method}-{rate}-{seed}", **shared, **own}


def rank_table(rows, items=()) -> pd.DataFrame:
    tables = {"runs": pd.DataFrame(rows)} | ({"ablation_items": pd.DataFrame(items)} if len(items) else {})
    return EXHIBITS["lora_rank"].tabulate(tables, "nano")


def answered(run_id: str, accuracy: float, items: int = 100) -> list[dict]:
    return [{"run_id": run_id, "item_id": f"i{n:03d}", "correct": int(n < round(accuracy * items))} for n in range(items)]


def test_rank_points_are_read_at_the_rate_that_validation_chooses():
    # The second seed of one rate alone counts in its test accuracy, not in the choice.
    runs = [rank_run("grpo", 1e-3, 0, 0.6, 0.1), rank_run("grpo", 1e-2, 0, 0.5, 0.9), rank_run("grpo", 1e-3, 1, 0.2, 0.3)]
    (point,) = rank_table(runs).to_dict("records")
    assert (point["learning_rate"], point["seeds"], point["rates_tried"]) == (1e-3, 2, 2)
    assert point["accuracy"] == pytest.approx(20.0)
    (point,) = rank_table([*runs, rank_run("grpo", 1e-2, 1, 0.9, 0.8)]).to_dict("records")
    assert point["learning_rate"] == 1e-2 and point["accuracy"] == pytest.approx(85.0)


def test_the_gap_at_a_rank_is_that_of_paired_seeds_with_its_interval():
    grpo, sparse = [0.70, 0.80, 0.90], [0.68, 0.76, 0.84]  # differences -2, -4, -6 points
    rows = [rank_run("grpo", 1e-3, n, 0.5, a) for n, a in enumerate(grpo)]
    rows += [rank_run("s_grpo", 1e-3, n, 0.5, a) for n, a in enumerate(sparse)]
    rows.append(rank_run("s_grpo", 1e-3, 3, 0.5, 0.1))  # a seed without a partner does not count
    items = [answer for one in rows for answer in answered(one["run_id"], one["accuracy"])]
    table = rank_table(rows, items).set_index("method")
    assert pd.isna(table.loc["grpo", "gap"]) and table.loc["s_grpo", "gap"] == pytest.approx(-4)
    assert table.loc["s_grpo", "gap_low"] < -4 < table.loc["s_grpo", "gap_high"]


def test_a_rate_tuned_at_the_edge_of_its_grid_is_named():
    low, middle = [(1e-4, 0.9), (3e-4, 0.8), (1e-3, 0.7)], [(1e-4, 0.8), (3e-4, 0.9), (1e-3, 0.7)]
    rows = [rank_run("grpo", rate, 0, validation, 0.5, rank=0) for rate, validation in low]
    rows += [rank_run("s_grpo", rate, 0, validation, 0.5, rank=0) for rate, validation in middle]
    assert rank_table(rows)["edge"].tolist() == ["lowest", ""]
    assert rank_table(rows[:1])["edge"].tolist() == [""], "one rate has no ends: it was tuned elsewhere"


def test_few_training_items_are_tabled_with_their_epochs_and_how_many_items_were_evaluated():
    cell = {"prompts_per_step": 4, "train_items": 64, "steps": 300, "grpo": 0.8}
    tables = synthetic.regimes(synthetic.headline(items=90, seeds=1), [cell, cell | {"train_items": 700}], first_seed=0, seeds=2)
    tables["runs"] = tables["runs"].assign(extra_splits="always", eval_items=128)
    small, large = EXHIBITS["overfitting"].tabulate(tables, "nano").to_dict("records")
    assert small["epochs"] == pytest.approx(300 * 4 / 64) and large["epochs"] == pytest.approx(300 * 4 / 700)
    assert [row["trained_items"] for row in (small, large)] == [64, 128]
    assert (small["items"], small["held_out_items"]) == (90, 128)


def _fraction_tables() -> dict[str, pd.DataFrame]:
    row = {"ablation": "token_fraction", "profile": "nano", "task": "word_problems", "method": "s_grpo", "status": "done"}
    row |= {"learning_rate": 2e-3}
    rule = {"selector": "rule", "keep_probability": 0.3, "cutoff": 8, "max_kept_tokens": 12}
    rule |= {"denominator": "kept", "kept_fraction": 0.38}
    share = {"token_share": 0.4, "kept_fraction": 0.4, "denominator": "kept"}
    settings = {
        "random": share | {"selector": "random"},
        "latest": share | {"selector": "latest"},
        "rule": rule,
        "other": rule | {"denominator": "completion"},
        "entropy": share | {"selector": "entropy"},
        "full": {"method": "grpo", "selector": "all", "kept_fraction": 1.0, "denominator": "completion"},
    }
    accuracy = {"random": (0.5, 0.6, 0.7), "latest": (0.52, 0.61, 0.73), "rule": (0.8, 0.7), "other": (0.8, 0.7)}
    accuracy |= {"entropy": (0.9, 0.9), "full": (0.95, 0.93)}
    runs, items = [], []
    for name, values in accuracy.items():
        for seed, value in enumerate(values):
            runs.append(row | settings[name] | {"run_id": f"{name}{seed}", "seed": seed, "accuracy": value})
            items += answered(f"{name}{seed}", value)
    return {"runs": pd.DataFrame(runs), "ablation_items": pd.DataFrame(items)}


def test_settings_of_the_token_fraction_are_told_apart():
    table = EXHIBITS["token_fraction"].tabulate(_fraction_tables(), "nano")
    assert len(table) == table["tokens"].nunique() == 6
    at = table.set_index(["selector", "denominator"])["accuracy"]
    assert at["random", "kept"] == pytest.approx(60) and at["rule", "completion"] == pytest.approx(75)


def test_a_choice_of_tokens_says_with_which_rates_and_seeds_it_was_tuned():
    tables = _fraction_tables()
    one = tables["runs"][tables["runs"]["run_id"].isin(["random0", "latest0", "full0"])]
    tried = [("token_fraction", name, 100, rate) for name, rate in (("random0", 1e-3), ("random0", 2e-3), ("latest0", 2e-3))]
    tried += [("learning_rate", "full0", seed, rate) for seed in (100, 101, 0) for rate in (1e-3, 2e-3, 4e-3)]
    rows = [
        {**one[one["run_id"] == name].iloc[0], "ablation": ablation, "run_id": f"t{n}", "seed": seed, "learning_rate": rate}
        for n, (ablation, name, seed, rate) in enumerate(tried)
    ]
    more = {**tables, "runs": pd.concat([tables["runs"], pd.DataFrame(rows)], ignore_index=True)}
    tabulate = EXHIBITS["token_fraction"].tabulate
    table, before = tabulate(more, "nano"), tabulate(tables, "nano")
    tuning = ["rates_tried", "tuning_seeds", "edge"]
    found = {row["selector"]: [row[name] for name in tuning] for row in table.to_dict("records")}
    assert (found["random"], found["latest"], found["all"]) == ([2, 1, "highest"], [1, 1, ""], [3, 2, ""])
    assert found["entropy"] == [0, 0, ""], "not tuned"
    pd.testing.assert_frame_equal(table.drop(columns=tuning), before.drop(columns=tuning))


def test_contrasts_are_drawn_and_said_as_their_intervals_are():
    shown = EXHIBITS["which_tokens"].show(_fraction_tables(), "nano")
    gains = shown.table["difference"].tolist()
    assert len(gains) >= 4 and sorted(gains)[-1] == pytest.approx(35), "the highest entropy minus random, two seeds in pairs"
    drawn = [line.get_xdata()[0] for line in shown.figure.axes[0].lines if line.get_marker() == "o"]
    assert drawn == pytest.approx(gains)
    said, clear = " ".join(shown.sentences), shown.table[(shown.table["difference_low"] > 0) | (shown.table["difference_high"] < 0)]
    for (tokens, reference), own in shown.table.groupby(["tokens", "reference"]):
        assert (f"{tokens} than {reference}" in said) == bool(len(own.merge(clear)))


def test_the_control_with_branches_is_not_taken_for_all_tokens():
    tables = _fraction_tables()
    runs, items = tables["runs"], tables["ablation_items"]
    more = {
        name: frame[frame["run_id"].str.startswith("full")].assign(run_id=lambda rows: rows["run_id"] + "b")
        for name, frame in (("runs", runs), ("ablation_items", items))
    }
    more["runs"]["selector"] = "all_and_branches"
    both = {name: pd.concat([tables[name], more[name]], ignore_index=True) for name in tables}
    tabulate = EXHIBITS["which_tokens"].tabulate
    table = tabulate(both, "nano")
    assert table.loc[0, ["tokens", "reference"]].tolist() == list(CREDIT) and table.loc[0, "difference"] == 0
    pd.testing.assert_frame_equal(table[1:].reset_index(drop=True), tabulate(tables, "nano"))


def test_what_credit_and_sparsity_change_is_said_first():
    row = {"setting": "word_problems after", "share": 1.0, "seeds": 3, "items": 100}
    names = [("the latest tokens", "random ones"), CREDIT, SPARSITY]
    gains = [(-9.1, -12.0, -6.0), (1.2, -0.5, 3.1), (-6.4, -9.0, -4.0)]
    ends = [dict(zip(("difference", "difference_low", "difference_high"), values, strict=True)) for values in gains]
    rows = [row | {"tokens": a, "reference": b} | found for (a, b), found in zip(names, ends, strict=True)]
    first, second = EXHIBITS["which_tokens"].say(pd.DataFrame(rows))
    assert re.findall(r"-?\d+\.\d", first) == ["1.2", "-0.5", "3.1", "-6.4", "-9.0", "-4.0"]
    assert re.findall(r"\d+\.\d", second) == ["9.1"]


# Plan, splits, power, log ---------------------------------------------------------------------------------------------------


def test_a_plan_says_how_many_runs_of_how_many_steps():
    configs = [load_profile("nano", method="grpo", seed=seed) for seed in (0, 1)]
    frame = pd.DataFrame(
        [{"run_id": str(c.seed), "ablation": a, **c.model_dump()} for a in ("lora_rank", "token_fraction") for c in configs]
    )
    numbers = re.findall(r"\d+", plan_sentence(frame).replace(",", ""))
    assert numbers == ["2", str(configs[0].steps), str(2 * configs[0].steps), "0", "2"]
    frame["status"] = ["done", "pending"] * 2
    assert plan_sentence(frame).endswith(" 1 run did not finish.")
    assert plan_table(frame)["runs"].tolist() == [2, 2]


def test_every_planned_run_is_counted_with_its_status(tables):
    states = state_table(tables["runs"])
    runs = tables["runs"].drop_duplicates(["ablation", "run_id"])
    for row in states.to_dict("records"):
        own = runs[runs["ablation"] == row["ablation"]]
        assert row["runs"] == len(own) == row["done"] + row["diverged"] + row["failed"] + row["pending"]
        assert row["diverged"] == (own["status"] == "diverged").sum()


def test_conclusions_follow_the_numbers_to_the_other_side():
    """GRPO that stays at its base, a sparse method that is ahead, and a method that was not run."""
    stuck = {"base": 0.5, "grpo": 0.5, "s_grpo": 0.7, "t_spmo": 0.3}
    options = {"seeds": 4, "items": 400, "asides": ("none", "after")}
    accuracy = synthetic.ACCURACY | dict.fromkeys(("word_problems", "word_problems none"), stuck)
    made = synthetic.headline(accuracy=accuracy, **options)
    words = with_setting(made["runs"])["setting"].str.startswith("word_problems")
    made["runs"] = made["runs"][words]
    _, improves, compared, _, tokens = conclusions(verdicts(CLAIMS, made), made, "nano")
    assert "Nor does it clearly here" in improves and "neither it nor GRPO was run" in tokens
    ahead, behind, *_ = compared.split(". ")
    assert "S-GRPO" in ahead and "in all 2 settings" in ahead and "T-SPMO" not in ahead
    assert "T-SPMO" in behind and "in all 2 settings" in behind and "S-GRPO" not in behind
    made["runs"] = made["runs"][made["runs"]["method"] != "grpo"]
    _, improves, compared, *_ = conclusions(verdicts(CLAIMS, made), made, "nano")
    assert "not run" in improves and "nothing can be said" in compared


def test_limits_say_where_a_better_learning_rate_is_known():
    """T-SPMO was called clearly behind in a setting where one seed put it level with GRPO at a higher rate."""
    headline = synthetic.headline()
    for factor, known in ((1.0, False), (10.0, True)):
        made = synthetic.tuned(headline, factor)
        assert ("better on validation" in " ".join(limits(verdicts(CLAIMS, made), made, "nano"))) is known
        exhibit = EXHIBITS["learning_rate"]
        assert ("better on validation" in exhibit.say(exhibit.tabulate(made, "nano"))[0]) is known


def test_power_says_what_can_be_detected_and_calls_alike_only_what_is_within_five_points(tables):
    said = power(tables, "nano")
    found = detectable_differences(tables, "nano")
    assert f"{span(found['detectable'])} points" in said and "3 seeds" in said and power({}, "nano") == "Not run."
    alike = found[(found["difference_low"] <= 0) & (found["difference_high"] >= 0) & (found["equal_within"] < 5)]
    assert len(alike) == said.count(" is within ") > 0


def test_the_log_of_negative_results_is_dated_in_order_and_shows_the_verdicts_of_today(page, tables):
    judged = verdicts(CLAIMS, tables)
    entries = negative_results(judged)
    days = [datetime.date.fromisoformat(entry["date"]) for entry in entries]
    assert days == sorted(days) and len(entries) >= 5
    words = Reader(page).words
    for entry in entries:
        assert all(entry[name] for name in ("what", "expected", "found", "follows"))
        assert entry["date"] in words and entry["what"] in words and entry["now"] in words
        for claim in entry["claims"]:
            assert f"{claim} {judged.set_index('claim').loc[claim, 'verdict']}, " in entry["now"]


def test_every_reconstructed_setting_is_in_the_ledger():
    listed = [name for entry in ledger()["deviations"] for name in entry["fields"]]
    marked = {name for name, field in ExperimentConfig.model_fields.items() if "[R]" in (field.description or "")}
    assert set(listed) == marked and len(listed) == len(set(listed))
    ids = [entry["id"] for entry in ledger()["deviations"]]
    assert len(ids) == len(set(ids))
    for entry in ledger()["deviations"]:
        assert entry["mark"] in ("R", "nano") and all(entry[name] for name in ("id", "topic", "choice", "why", "effect"))


# Numbers, tables, pages -----------------------------------------------------------------------------------------------------


def test_numbers_are_written_in_few_digits():
    values = (0.456, 27.23, 12345.6, 0.00312, 0.0, float("nan"))
    assert [number(value) for value in values] == ["0.46", "27.2", "12,346", "0.0031", "0", ""]
    assert interval(0.61, 0.597, 0.62, " %") == "0.61 % [0.60, 0.62]", "all three to the same place"
    assert interval(-0.23, -1.42, 0.9) == "-0.2 [-1.4, 0.9]" and interval(3.0, float("nan"), float("nan")) == "3.0"
    assert interval(-0.001, -0.9, 0.9) == "0.00 [-0.90, 0.90]", "no negative zero"
    assert span([8.6, 3.25]) == "3.2 to 8.6" and span([2.0, 2.0]) == "2.0"


def test_a_table_merges_intervals_escapes_texts_and_leaves_out_what_was_not_measured():
    row = {"method": "s_grpo", "accuracy": 80.16, "accuracy_low": 75.0, "accuracy_high": 84.0, "seeds": 3.0, "note": "<script>"}
    made = table_html(pd.DataFrame([row | {"empty": float("nan")}]))
    assert ">S-GRPO<" in made and ">80.2 [75.0, 84.0]<" in made and ">3<" in made
    assert "&lt;script&gt;" in made and "empty" not in made and "low" not in made


def test_a_gain_stands_beside_the_accuracy_that_it_is_a_part_of(tables):
    """It was the last column of the headline table, since the base in its first row has none; and a rise was three columns."""
    heads = {name: [text for text, _ in shown_table(EXHIBITS[name].tabulate(tables, "nano"))["heads"]] for name in EXHIBITS}
    at = heads["full_vs_sparse"].index("test accuracy, %")
    assert heads["full_vs_sparse"][at + 1].startswith("gain over the base")
    assert not [head for its in heads.values() for head in its if head.endswith((" low", " high"))]


def test_an_exhibit_in_a_notebook_becomes_a_file_that_its_page_refers_to(tables, folder, tmp_path):
    """Every page held each figure anew, 8 MB in all."""
    shown = EXHIBITS["full_vs_sparse"].show(tables, "nano")
    output = nbformat.v4.new_output("display_data", {"text/html": shown._repr_html_()})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("show", outputs=[output])])
    inside = notebook_page(notebook, "a page", show_code=True)
    assert "data:image/png;base64," in inside
    stored = notebook_page(notebook, "a page", show_code=True, figures=tmp_path / "figures")
    Reader(stored)
    assert 'src="../figures/full_vs_sparse.png"' in stored and "data:image/png" not in stored
    same = (folder / "figures/full_vs_sparse.png").read_bytes()
    assert (tmp_path / "figures/full_vs_sparse.png").read_bytes() == same, "one figure, one file"


def test_formulas_become_images_with_their_source_as_text():
    made = formula(r"\frac{1}{G}\sum_i A_i")
    assert "data:image/svg+xml" in made and 'alt="\\frac{1}{G}\\sum_i A_i"' in made
    assert formula("x_i") == formula("x_i")
    text = with_formulas("cost `$5` and $x$ and\n$$\ny = 2\n$$\n")
    assert "`$5`" in text and text.count("<img") == 2 and 'class="display"' in text


def test_the_short_answer_follows_the_verdicts():
    judged = pd.DataFrame({"claim": ["C2", "C3", "C4"], "scale": "paper", "counterpart": None, "verdict": "not run"})
    own = pd.DataFrame({"claim": ["N2", "N3", "N4"], "scale": "nano", "counterpart": ["C2", "C3", "C4"],
                        "verdict": ["supported", "inconclusive", "not supported"]})  # fmt: skip
    said = short_answer(pd.concat([judged, own]), "nano")
    assert "over 70 %”: in part" in said and "does not improve”: no" in said and "nothing was run" in said
    said = short_answer(judged.assign(verdict="supported"), "paper")
    assert said.count("yes") == 2 and "nothing was run" not in said
    assert short_answer(judged, "small") == "Does the paper hold? At its own scale nothing was run."
