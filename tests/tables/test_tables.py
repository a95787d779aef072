"""Tables: every planned run has its row, equal runs give equal bytes, and a damaged file is one clear line."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from disk_calls import disk_full, forked, interfere, killed
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import StandIn, train

from replication.config import ExperimentConfig
from replication.errors import UserError
from replication.runs import mark_failed
from replication.tables import KINDS, build_tables, frame, parse, read_tables, run_columns, tables_manifest, write_tables


@dataclass(frozen=True)
class Planned:
    ablation: str
    config: StandIn


SHARED = StandIn(seed=1, max_kept_tokens=3)
PLAN = [
    Planned("token_fraction", SHARED),
    Planned("full_vs_sparse", StandIn(seed=0)),
    Planned("full_vs_sparse", SHARED),
    Planned("learning_rate", StandIn(seed=2)),
    Planned("learning_rate", StandIn(seed=3, fault="diverges")),
    Planned("learning_rate", StandIn(seed=4)),
]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """All but seed 2 (never begun) and seed 4 (failed)."""
    for planned in PLAN[1:]:
        if planned.config.seed in (0, 1, 3):
            train(planned.config, tmp_path / "runs" / planned.config.run_id)
    mark_failed(tmp_path / "runs" / PLAN[-1].config.run_id, "killed by\nsignal 9", ["a line"])
    return tmp_path / "runs"


def test_every_planned_run_has_a_row_with_its_status(runs):
    table = build_tables(PLAN, runs)["runs"].set_index(["ablation", "seed"])
    assert table["status"].to_dict() == {
        ("full_vs_sparse", 0): "done", ("full_vs_sparse", 1): "done", ("token_fraction", 1): "done",
        ("learning_rate", 2): "pending", ("learning_rate", 3): "diverged", ("learning_rate", 4): "failed",
    }  # fmt: skip
    assert table.loc[("learning_rate", 4), "reason"] == "killed by signal 9"
    assert math.isnan(table.loc[("learning_rate", 2), "accuracy"])
    assert table.loc[("full_vs_sparse", 0), "accuracy"] == 0.5
    assert list(table.reset_index().columns).count("run_id") == 1
    assert table["lora_targets"].iloc[0] == '["q_proj","v_proj"]'


def test_curves_once_per_run_and_items_of_headline_and_ablations_apart(runs):
    tables = build_tables(PLAN, runs)
    curves, items, timings = tables["curves"], tables["items"], tables["timings"]
    # Of the run that only an ablation asks for, the validation alone would be kept, and the stand-in has none.
    assert set(curves["run_id"]) == {StandIn(seed=0).run_id, SHARED.run_id}
    assert len(curves) == 2 * 4 * 2 and set(curves["metric"]) == {"reward", "kept_fraction"}
    assert curves.loc[curves["metric"] == "kept_fraction", "value"].isna().all()
    assert set(tables["ablation_items"]["run_id"]) == {StandIn(seed=3, fault="diverges").run_id}
    assert tables["ablation_items"]["correct"].tolist() == [0, 1, 0, 1]
    assert set(items["run_id"]) == {StandIn(seed=0).run_id, SHARED.run_id}
    assert items["correct"].tolist() == [0, 1, 0, 1] * 2
    assert list(items.columns) == list(tables["ablation_items"].columns)
    assert timings["seconds"].tolist() == [4.0] * 3 and timings["peak_rss_bytes"].tolist() == [1004.0] * 3


def rewrite(folder: Path, **files: str) -> None:
    """Replace files of a finished run, and its checksums, as if it had ended so."""
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": {}}))


def test_every_split_of_a_headline_run_and_the_test_items_of_an_ablation(runs):
    """No table showed the templates, or how a run answers what it was trained on."""
    text = "schema_version,split,item_id,template,correct,reward,truncated,parsed\n"
    text += "1,train,NA,,1,1,0,1\n1,test,b,apples,1,0.75,0,\n1,held_out,c,pears,0,0,1,0\n"
    other = StandIn(seed=3, fault="diverges")
    for run_id in (SHARED.run_id, other.run_id):
        rewrite(runs / run_id, items_csv=text)
    tables = build_tables(PLAN, runs)
    own = tables["items"][tables["items"]["run_id"] == SHARED.run_id]
    assert own["split"].tolist() == ["held_out", "test", "train"] and own["item_id"].tolist() == ["c", "b", "NA"]
    assert own["template"].tolist()[:2] == ["pears", "apples"] and own["template"].isna().tolist() == [False, False, True]
    assert own["reward"].tolist() == [0, 0.75, 1] and own["parsed"].isna().tolist() == [False, True, False]
    assert tables["ablation_items"][["split", "item_id"]].values.tolist() == [["test", "b"]]


def test_a_run_under_a_tenth_of_its_base_has_collapsed(tmp_path):
    """Such runs stood among the others as if they had learnt little; their accuracy counts as it is."""
    bases = {"word_problems": 0.5, "multiplication": 0.0}
    trained = [("word_problems", 0, 0.049), ("word_problems", 1, 0.05), ("word_problems", 2, 0.01), ("multiplication", 0, 0.0)]
    plan = [Planned("full_vs_sparse", StandIn(task=task, method="base")) for task in bases]
    faults = {0: "none", 1: "none", 2: "diverges"}
    configs = [StandIn(task=task, method="grpo", seed=seed, fault=faults[seed]) for task, seed, _ in trained]
    plan += [Planned("learning_rate", config) for config in configs]
    for planned, value in zip(plan, [*bases.values(), *(value for *_, value in trained)], strict=True):
        folder = tmp_path / planned.config.run_id
        train(planned.config, folder)
        summary = json.loads((folder / "summary.json").read_text())
        rewrite(folder, summary_json=json.dumps(summary | {"accuracy": value}))
    table = build_tables(plan, tmp_path)["runs"].set_index(["task", "method", "seed"])
    assert table["status"].to_dict() == {
        ("word_problems", "base", 0): "done", ("multiplication", "base", 0): "done",
        ("word_problems", "grpo", 0): "collapsed", ("word_problems", "grpo", 1): "done",
        ("word_problems", "grpo", 2): "diverged", ("multiplication", "grpo", 0): "done",
    }  # fmt: skip
    assert table.loc[("word_problems", "grpo", 0), "accuracy"] == 0.049


def test_curves_end_where_training_ends(tmp_path):
    """The last validation is part of the final evaluation: without it a curve of 75 steps would stop at step 50."""
    config = StandIn(seed=1)
    train(config, tmp_path / config.run_id)
    summary = json.loads((tmp_path / config.run_id / "summary.json").read_text()) | {"steps_done": 75, "validation_accuracy": 0.9}
    lines = [{"step": 50, "validation_accuracy": 0.8, "validation_sampled_accuracy": 0.7}, {"step": 75, "reward": 0.5}]
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    rewrite(tmp_path / config.run_id, metrics_jsonl=metrics, summary_json=json.dumps(summary))
    for ablation in ("learning_rate", "full_vs_sparse"):
        rows = build_tables([Planned(ablation, config)], tmp_path)["curves"]
        own = rows[rows["metric"] == "validation_accuracy"]
        assert own[["step", "value"]].values.tolist() == [[50, 0.8], [75, 0.9]]
        assert ("reward" in set(rows["metric"])) is (ablation == "full_vs_sparse")


def test_a_large_table_is_compressed_and_read_like_any_other(tmp_path):
    small = frame([{"run_id": "a", "step": 1, "metric": "reward", "value": 0.5}], KINDS["curves"], ["step"])
    rows = [{"run_id": f"{i // 1000:016d}", "step": i % 1000, "metric": "reward", "value": i / 7} for i in range(120_000)]
    large = frame(rows, KINDS["curves"], ["run_id", "step"])
    for folder in ("a", "b"):
        write_tables({"curves": small}, tmp_path / folder, {})
        write_tables({"curves": large}, tmp_path / folder, {})
        assert {path.name for path in (tmp_path / folder).iterdir()} == {"curves.csv.gz", "manifest.json"}
    assert (tmp_path / "a/curves.csv.gz").read_bytes() == (tmp_path / "b/curves.csv.gz").read_bytes()
    assert (tmp_path / "a/curves.csv.gz").stat().st_size < 2_000_000
    pd.testing.assert_frame_equal(read_tables(tmp_path / "a")["curves"], large, rtol=1e-5)
    assert pd.read_csv(tmp_path / "a/curves.csv.gz")["value"].tolist() == pytest.approx(large["value"].tolist(), rel=1e-5)
    write_tables({"curves": small}, tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"curves.csv", "manifest.json"}
    (tmp_path / "b/manifest.json").unlink()
    data = (tmp_path / "b/curves.csv.gz").read_bytes()
    for damaged in (data[:-10], data[:1000] + b"x" + data[1001:], b""):
        (tmp_path / "b/curves.csv.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"curves\.csv\.gz is garbled"):
            read_tables(tmp_path / "b")


def test_the_same_runs_elsewhere_and_in_another_order_give_the_same_bytes(runs, tmp_path):
    moved = tmp_path / "elsewhere"
    runs.rename(moved)
    write_tables(build_tables(PLAN, moved), tmp_path / "a", {})
    moved.rename(runs)
    write_tables(build_tables(PLAN[::-1], runs), tmp_path / "b", {})
    for name in ("runs", "curves", "items", "ablation_items", "timings"):
        assert (tmp_path / f"a/{name}.csv").read_bytes() == (tmp_path / f"b/{name}.csv").read_bytes()
        assert b"\r" not in (tmp_path / f"a/{name}.csv").read_bytes()


def test_what_is_written_is_read_back(runs, tmp_path):
    tables = build_tables(PLAN, runs)
    write_tables(tables, tmp_path / "out", tables_manifest(PLAN, runs))
    back = read_tables(tmp_path / "out")
    assert set(back) == {"runs", "curves", "items", "ablation_items", "timings"}
    for name, table in tables.items():
        pd.testing.assert_frame_equal(back[name], table, rtol=1e-5)
    write_tables(back, tmp_path / "again")
    for name in tables:
        assert (tmp_path / f"out/{name}.csv").read_bytes() == (tmp_path / f"again/{name}.csv").read_bytes()


def test_missing_is_empty_and_never_zero(runs, tmp_path):
    write_tables(build_tables(PLAN, runs), tmp_path / "out", {})
    row = next(line for line in (tmp_path / "out/runs.csv").read_text().splitlines() if ",pending," in line)
    columns = (tmp_path / "out/runs.csv").read_text().splitlines()[0].split(",")
    assert row.endswith("pending" + "," * (len(columns) - 1 - columns.index("status")))


def test_the_real_config_gives_the_columns_of_the_contract():
    columns = list(run_columns(ExperimentConfig))
    assert columns[:7] == ["run_id", "ablation", "profile", "task", "method", "selector", "seed"]
    assert set(ExperimentConfig.model_fields) - {"tensorboard", "compile_sampling"} <= set(columns), "they change no number"
    assert {"command", "status", "accuracy", "sampled_accuracy", "n_items"} <= set(columns)
    assert {"tokens_generated", "tokens_in_loss", "kept_fraction"} <= set(columns)
    kinds = run_columns(ExperimentConfig)
    assert kinds["cutoff"] == "int" and kinds["learning_rate"] == "float" and kinds["lora_targets"] == "str"
    assert kinds["activation_checkpointing"] == "bool" and kinds["n_items"] == "int"


def test_a_plan_without_any_run_gives_tables_of_pending_rows(tmp_path):
    tables = build_tables(PLAN, tmp_path / "nothing")
    assert set(tables["runs"]["status"]) == {"pending"} and len(tables["curves"]) == 0
    write_tables(tables, tmp_path / "out", tables_manifest(PLAN, tmp_path / "nothing"))
    assert len(read_tables(tmp_path / "out")["runs"]) == len(PLAN)


def test_verdicts_are_added_beside_the_others_and_the_manifest_knows_them(runs, tmp_path):
    write_tables(build_tables(PLAN, runs), tmp_path, {"commit": "abc"})
    row = {"claim": "N1", "paper_value": "over 70 %", "value": 71.25, "low": None, "high": 80.0, "seeds": 3, "items": 300}
    verdicts = pd.DataFrame([row | {"verdict": "inconclusive", "note": 'a "quoted", <b>note</b>\nof two lines'}])
    write_tables({"verdicts": verdicts}, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["commit"] == "abc"
    assert set(manifest["tables"]) == {f"{name}.csv" for name in (*build_tables(PLAN, runs), "verdicts")}
    back = read_tables(tmp_path)["verdicts"]
    assert back["note"].tolist() == verdicts["note"].tolist() and back["value"].tolist() == [71.25] and math.isnan(back["low"][0])


def test_the_manifest_names_seeds_commits_and_memory(runs):
    found = tables_manifest(PLAN, runs)
    assert found["seeds"] == [0, 1, 3] and found["seconds_of_all_runs"] == 12.0 and found["peak_rss_bytes"] == 1004
    assert len(found["runs"]) == 3 and {"packages", "cpu", "command", "commit", "dirty"} <= set(found)


def begun(folder: Path, **changes) -> None:
    """Let the run there have been begun in another way, and have gone on as it did."""
    path = folder / "manifest.json"
    there = json.loads(path.read_text())
    start = {name: there[name] for name in ("started", "commit", "dirty")} | changes
    path.write_text(json.dumps(there | {"dirty": False, "earlier_starts": [start]}))


def test_a_run_begun_from_a_dirty_tree_stays_dirty_and_names_every_commit(runs):
    """Begun with changes, committed, resumed: only the last start counted, and the run was published as clean."""
    for run_id in (StandIn(seed=0).run_id, SHARED.run_id, StandIn(seed=3, fault="diverges").run_id):
        begun(runs / run_id, dirty=False, commit="a" * 40)
    assert tables_manifest(PLAN, runs)["runs_dirty"] is False
    begun(runs / SHARED.run_id, dirty=None, commit=None)
    assert tables_manifest(PLAN, runs)["runs_dirty"] is None
    begun(runs / SHARED.run_id, dirty=True, commit="b" * 40)
    found = tables_manifest(PLAN, runs)
    assert found["runs_dirty"] is True and {"a" * 40, "b" * 40} < set(found["run_commits"])
    assert found["runs"][SHARED.run_id]["dirty"] is True and found["runs"][SHARED.run_id]["earlier_starts"][0]["commit"] == "b" * 40


def test_what_the_runs_were_made_with_stands_once_or_beside_each(runs):
    found = tables_manifest(PLAN, runs)
    assert found["runs_packages"] == found["packages"] and found["runs_python"] == found["python"]
    assert all("packages" not in run and "model_commit" in run for run in found["runs"].values())
    path = runs / SHARED.run_id / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"packages": {"torch": "1.0"}, "model_commit": "c" * 40}))
    found = tables_manifest(PLAN, runs)
    assert "runs_packages" not in found and found["runs"][SHARED.run_id]["packages"] == {"torch": "1.0"}
    assert all("packages" in run and not {"python", "cpu", "gpu"} & set(run) for run in found["runs"].values())
    assert found["runs"][SHARED.run_id]["model_commit"] == "c" * 40


DAMAGES = {
    "cut off in a line": (lambda text: text[: len(text) // 2].rstrip("\n"), "cut off"),
    "empty": (lambda text: "", "cut off"),
    "another schema": (lambda text: text.replace("\n1,", "\n0,"), "schema_version 0"),
    "no schema": (lambda text: text.replace("schema_version", "version", 1), "no column schema_version"),
    "renamed column": (lambda text: text.replace("value", "wert", 1), "no column value"),
    "not a number": (lambda text: text.rstrip("\n") + "x\n", "garbled"),
    "a cell too many": (lambda text: text.rstrip("\n") + ",9\n", "garbled"),
    "an open quote": (lambda text: text.rstrip("\n") + '"a\n', "curves.csv"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_one_line_with_file_and_column(runs, tmp_path, damage):
    write_tables(build_tables(PLAN, runs), tmp_path / "out", {})
    change, message = DAMAGES[damage]
    path = tmp_path / "out/curves.csv"
    path.write_text(change(path.read_text()))
    (tmp_path / "out/manifest.json").unlink()  # the checksum would speak first
    with pytest.raises(UserError, match=message) as caught:
        read_tables(tmp_path / "out")
    assert "curves.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_cut_off_between_two_rows_is_found_by_its_checksum(runs, tmp_path):
    write_tables(build_tables(PLAN, runs), tmp_path / "out", {})
    path = tmp_path / "out/curves.csv"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="checksum"):
        read_tables(tmp_path / "out")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "runs.csv").write_bytes(b"schema_version,run_id\n1,\xff\n")
    with pytest.raises(UserError, match=r"runs\.csv is garbled"):
        read_tables(tmp_path)


def test_a_folder_without_tables(tmp_path):
    with pytest.raises(UserError, match="no tables"):
        read_tables(tmp_path)


def test_a_damaged_log_of_a_finished_run_names_the_folder_to_remove(runs):
    path = runs / SHARED.run_id / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="remove the folder"):
        build_tables(PLAN, runs)


def test_a_damaged_manifest_does_not_stop_writing(runs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text('{"commit"')
    write_tables(build_tables(PLAN, runs), tmp_path / "out", {"commit": "abc"})
    assert read_tables(tmp_path / "out")


# Writers that fail or die -----------------------------------------------------------------------------------------------

OLD, NEW = ({name: pd.DataFrame({"claim": [age] * 20, "verdict": ["x"] * 20}) for name in "abc"} for age in ("old", "new"))


def ages(tmp_path: Path, attempt: Callable[[Path, int], bool]) -> list[list[str]]:
    """What is in a, b and c after ``attempt(folder, number)`` to write the new tables, for number = 0, 1, ... until one succeeds.

    After each attempt the folder can be read, every table is whole, and the next writer writes all of them.
    """
    found, succeeded = [], False
    while not succeeded:
        folder = tmp_path / str(len(found))
        write_tables(OLD, folder, {"note": "old"})
        succeeded = attempt(folder, len(found))
        tables = read_tables(folder)
        assert all(table["claim"].nunique() == 1 and len(table) == 20 for table in tables.values())
        found.append([tables[name]["claim"].iloc[0] for name in "abc"])
        write_tables(NEW, folder, notes={"note": "new"})
        assert {table["claim"].iloc[0] for table in read_tables(folder).values()} == {"new"}
        assert json.loads((folder / "manifest.json").read_text())["note"] == "new"
    return found


def test_no_table_is_lost_whatever_call_meets_a_full_disk(tmp_path, monkeypatch):
    """At the second table it left a new one beside the checksums of the old ones, and nothing could read the folder again."""

    def attempt(folder: Path, number: int) -> bool:
        with monkeypatch.context() as patch:
            interfere(folder, number, disk_full, names=("write", "fsync", "replace"), setattr=patch.setattr)
            try:
                write_tables(NEW, folder, notes={"note": "new"})
            except UserError:
                return False
        return True

    found = ages(tmp_path, attempt)
    assert found[0] == ["old"] * 3 and found[-1] == ["new"] * 3 and len(found) > 9


def test_no_table_is_lost_wherever_their_writer_is_killed(tmp_path):
    """Killed between credit.csv and the manifest, ``make report`` carried the stale checksum over for ever."""

    def attempt(folder: Path, number: int) -> bool:
        def write() -> None:
            interfere(folder, number, killed)
            write_tables(NEW, folder, notes={"note": "new"})

        status = forked(write)
        assert status in (0, -signal.SIGKILL)
        return status == 0

    found = ages(tmp_path, attempt)
    assert found[0] == ["old"] * 3 and found[-1] == ["new"] * 3 and len(found) > 9


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("credit", "replication diagnose --out"), ("worked_example", "replication diagnose --out"), ("prompts", "`make prompts`")],
)
def test_a_damaged_table_that_no_run_is_in_names_what_measures_it_again(tmp_path, name, remedy):
    """It said `make report`, which cannot make it."""
    write_tables({name: pd.DataFrame({"task": ["word_problems"]})}, tmp_path, {})
    (tmp_path / f"{name}.csv").write_text("schema_version,task\n1,edited\n")
    with pytest.raises(UserError, match=remedy):
        read_tables(tmp_path)


def test_a_report_written_while_credit_is_measured_is_not_lost(tmp_path, monkeypatch):
    """The manifest was read before, and written back after, the minutes of measuring."""
    from replication.__main__ import main

    def measured(*_, **__):
        write_tables({}, tmp_path, {"commit": "of the report"})
        return {"credit": pd.DataFrame({"task": ["word_problems"]})}, {"seconds": 60.0}

    write_tables({}, tmp_path, {"commit": "of before"})
    monkeypatch.setattr("replication.measure.diagnose", measured)
    assert main(["diagnose", "--out", str(tmp_path)]) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["commit"] == "of the report" and "credit.csv" in manifest["tables"]
    assert manifest["diagnostics"]["seconds"] == 60.0


HEADED = st.text(max_size=300).map(lambda text: ("schema_version,claim\n1," + text).encode("utf-8", "ignore"))


@given(st.binary(max_size=300) | HEADED, st.sampled_from(["fuzz.csv", "verdicts.csv", "fuzz.csv.gz"]))
def test_reading_anything_gives_a_table_or_a_user_error(data, name):
    try:
        parse(data, Path(name), KINDS.get(name.removesuffix(".csv"), {}), ("claim",))
    except UserError as error:
        assert name in str(error) and "\n" not in str(error)
