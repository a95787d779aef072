"""Publishing copies what is evidence and refuses everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from replication.errors import UserError
from replication.report import publish, publishing
from replication.tables import read_tables, write_tables

FILES = ("figures/full_vs_sparse.png", "figures/full_vs_sparse.svg", "notebooks/one.html", "report.html")


def results(folder: Path, **changes) -> Path:
    row = {"run_id": "a" * 16, "ablation": "full_vs_sparse", "profile": "nano", "task": "word_problems", "method": "grpo"}
    row |= {"seed": 0, "command": "python -m replication run", "status": "done", "accuracy": 0.5, "model": "nano"}
    item = {"run_id": "a" * 16, "split": "test", "item_id": changes.pop("item_id", "x"), "correct": 1, "truncated": 0}
    item |= {"template": None, "reward": 1.0, "parsed": 1}
    tables = {"runs": pd.DataFrame([row | changes]), "items": pd.DataFrame([item])}
    write_tables(tables, folder, {"commit": "c" * 40, "dirty": False, "runs_dirty": False})
    for name in (*FILES, "figures/mine.png", "runs/x/config.json", "notebooks/one.ipynb"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of now")
    return folder


@pytest.fixture
def clean_tree(monkeypatch):
    monkeypatch.setattr(publishing, "dirty", lambda: False)


def test_tables_figures_and_pages_are_copied_and_nothing_else(tmp_path, clean_tree):
    target = tmp_path / "to"
    (target / "figures").mkdir(parents=True)
    (target / "figures/stale.png").write_text("of a figure that is no longer made")
    (target / "README.md").write_text("mine")
    published = publish("nano", results(tmp_path / "from"), target)
    names = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert names == {*FILES, "runs.csv", "items.csv", "manifest.json", "README.md"}
    assert {path.relative_to(target).as_posix() for path in published} == names - {"README.md"}
    assert read_tables(target)


@pytest.mark.parametrize(
    ("profile", "changes", "message"),
    [
        ("nano", {"status": "pending"}, "1 planned runs"),
        ("nano", {"status": "failed"}, "are not finished"),
        ("smoke", {"profile": "smoke"}, "never published"),
        ("nano", {"profile": "paper"}, "does not hold runs of profile nano"),
        ("paper", {"profile": "paper", "item_id": "made-up-7"}, "dry runs are no evidence"),
    ],
)
def test_what_is_no_evidence_is_refused(tmp_path, clean_tree, profile, changes, message):
    with pytest.raises(UserError, match=message):
        publish(profile, results(tmp_path / "from", **changes), tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_finished_dry_run_is_refused_by_what_its_model_says(tmp_path, clean_tree):
    """It was told by a field of the manifest that nothing wrote, so it would have been published over the paper's results."""
    from replication.config import ExperimentConfig
    from tools import dryrun

    assert "dry_run" not in ExperimentConfig.model_fields, "a run does not say it of itself: its model does"
    model, _ = dryrun.prepare(tmp_path / "dry")
    folder = results(tmp_path / "dry", profile="paper", model=str(model), item_id="official")
    with pytest.raises(UserError, match="dry runs are no evidence"):
        publish("paper", folder, tmp_path / "to")
    (model / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"]}))
    assert publish("paper", folder, tmp_path / "to")


def test_a_dirty_tree_is_refused(tmp_path, monkeypatch):
    folder = results(tmp_path / "from")
    monkeypatch.setattr(publishing, "dirty", lambda: True)
    with pytest.raises(UserError, match="commit them first"):
        publish("nano", folder, tmp_path / "to")
    monkeypatch.setattr(publishing, "dirty", lambda: False)
    for manifest in ({"runs_dirty": True, "dirty": False}, {"runs_dirty": None, "dirty": False}, {"runs_dirty": False}):
        write_tables({}, folder, manifest)
        with pytest.raises(UserError, match="uncommitted changes or outside git"):
            publish("nano", folder, tmp_path / "to")
    assert not (tmp_path / "to").exists()
