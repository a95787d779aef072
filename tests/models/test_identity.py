"""The bytes of a local model name a run, not the path it is reached by; a config.json that is no run's is never written over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import noisy_rewards, outcome, tiny_config

from replication import train
from replication.ablations import plan
from replication.errors import UserError
from replication.names import NANO_BASE


@pytest.fixture
def base(random_base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(random_base, tmp_path / "models" / "x")


def test_every_spelling_of_a_path_is_the_same_run(base, tmp_path, monkeypatch):
    """`models/x` and `models/x/`, relative and absolute, were two runs each."""
    monkeypatch.chdir(tmp_path)
    moved = shutil.copytree(base, tmp_path / "moved")
    (tmp_path / "link").symlink_to(base)
    spellings = [base, f"{base}/", "models/x", "models/x/", "./models/../models/x", moved, "link"]
    assert len({tiny_config(spelling).run_id for spelling in spellings}) == 1
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    assert tiny_config(moved).run_id != tiny_config(base).run_id
    assert tiny_config(NANO_BASE).run_id == tiny_config("nano").run_id


def test_a_run_is_resumed_under_another_spelling_of_its_model(base, tmp_path, monkeypatch):
    noisy_rewards(monkeypatch)
    train.run(tiny_config(base), tmp_path / "whole")
    monkeypatch.setattr(train, "final_evaluation", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train.run(tiny_config(base), tmp_path / "run")
    monkeypatch.undo()
    noisy_rewards(monkeypatch)
    train.run(tiny_config(f"{base}/"), tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    with pytest.raises(UserError, match="holds a run of another config"):
        train.run(tiny_config(NANO_BASE), tmp_path / "run")


def test_a_run_goes_on_under_another_bound_on_memory(random_base, tmp_path, monkeypatch):
    noisy_rewards(monkeypatch)
    monkeypatch.setattr(train, "final_evaluation", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train.run(tiny_config(random_base), tmp_path / "run")
    monkeypatch.undo()
    noisy_rewards(monkeypatch)
    smaller = tiny_config(random_base, token_budget=128, activation_checkpointing=True)
    assert train.run(smaller, tmp_path / "run").status == "done"


def test_a_run_on_the_shipped_base_is_named_by_its_whole_config():
    """So that the committed runs of the nano lab keep their names."""
    for planned in plan("nano", variant="full"):
        assert json.dumps(planned.config.identity, sort_keys=True, separators=(",", ":")) == planned.config.canonical


def test_after_a_typo_found_at_loading_the_corrected_command_goes_on(random_base, tmp_path):
    with pytest.raises(UserError, match="the adapter does not fit"):
        train.run(tiny_config(random_base, lora_targets=("q_prj",)), tmp_path / "run")
    assert train.run(tiny_config(random_base), tmp_path / "run").status == "done"
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["run_id"] == tiny_config(random_base).run_id and manifest["earlier_starts"] == []


def test_a_models_own_folder_is_no_place_for_a_run(base):
    """Its config.json would be overwritten with the run's."""
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    with pytest.raises(UserError, match="choose another folder"):
        train.run(tiny_config(base), base)
    assert {name: (base / name).read_bytes() for name in before} == before
