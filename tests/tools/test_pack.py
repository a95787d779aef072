"""Finished runs in archives: what is packed comes back, once, and nothing that is there is touched."""

from __future__ import annotations

import json

from replication.config import load_profile
from replication.runs import check_files, read_summary
from replication.train import run
from tools import pack


def test_a_packed_run_comes_back_where_it_is_missing_and_counts_as_finished(tmp_path):
    config = load_profile("smoke", task="multiplication", method="base", extra_splits="never")
    runs, packs, elsewhere = tmp_path / "runs", tmp_path / "packs", tmp_path / "elsewhere"
    run(config, runs / config.run_id)
    (runs / "unfinished").mkdir()
    (runs / "unfinished" / "config.json").write_text("{}")
    assert pack.save(runs, packs) == 1
    assert pack.save(runs, packs) == 0, "a run is packed once"
    assert pack.packed(packs) == {config.run_id}

    assert pack.load(elsewhere, packs) == 1
    folder = elsewhere / config.run_id
    check_files(folder)
    assert read_summary(folder) == read_summary(runs / config.run_id)
    before = (folder / "timings.jsonl").read_bytes()
    assert run(config, folder) == read_summary(folder)
    assert (folder / "timings.jsonl").read_bytes() == before, "a packed run is not trained again"

    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0}))
    assert pack.load(elsewhere, packs) == 0, "what is there stays as it is"
