"""TensorBoard event files beside metrics.jsonl: the same numbers, also over a resumed run; one line without the package."""

from __future__ import annotations

import sys

import pytest
from tiny_runs import lines, noisy_rewards, outcome, tiny_config

from replication import train
from replication.errors import UserError


def test_event_files_hold_the_numbers_of_metrics_jsonl_and_change_none(random_base, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (extra `tensorboard`)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    noisy_rewards(monkeypatch)
    train.run(tiny_config(random_base), tmp_path / "plain")
    shown = tiny_config(random_base, tensorboard=True)
    with monkeypatch.context() as patch:
        patch.setattr(train, "final_evaluation", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train.run(shown, tmp_path / "shown")
    train.run(shown, tmp_path / "shown")
    assert outcome(tmp_path / "shown") == outcome(tmp_path / "plain"), "the run id too, in summary.json"
    assert not (tmp_path / "plain/tensorboard").exists()
    events = EventAccumulator(str(tmp_path / "shown/tensorboard"))
    events.Reload()
    for name in ("reward", "validation_accuracy", "loss"):
        expected = {row["step"]: row[name] for row in lines(tmp_path / "shown") if row.get(name) is not None}
        assert {event.step: event.value for event in events.Scalars(name)} == pytest.approx(expected)


def test_without_the_package_it_is_one_line_before_anything_is_made(random_base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install '\.\[tensorboard\]'") as error:
        train.run(tiny_config(random_base, tensorboard=True), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run/config.json").exists()
