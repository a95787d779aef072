"""The README: generated parts equal what they are generated from, commands exist, examples run as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_tables as synthetic
from tried import note

from replication.errors import UserError
from replication.statistics import verdicts
from replication.tables.build import read_tables, write_tables
from tools import readme

TEXT = readme.README.read_text()
EXAMPLES = re.findall(r"^### (.+?)\n.*?^```python\n(.*?)^```", TEXT, re.S | re.M)


def test_the_verdict_table_is_that_of_the_committed_csv():
    assert readme.block(TEXT, "verdicts") == readme.verdict_block()
    committed = readme.COMMITTED
    judged = read_tables(committed)["verdicts"] if any(committed.glob("*.csv")) else verdicts(readme.CLAIMS, {})
    rows = re.findall(r"^\| \*\*(\w+)\*\* .* \| ([a-z ]+) \|$", readme.block(TEXT, "verdicts"), re.M)
    assert dict(rows) == dict(zip(judged["claim"], judged["verdict"], strict=True))


def test_the_plan_is_that_of_the_profile():
    assert readme.block(TEXT, "plan") == readme.plan_block()


def test_the_needs_of_the_paper_are_those_of_its_profile():
    assert readme.block(TEXT, "paper") == readme.paper_block()


def test_the_tree_names_every_file_and_no_other():
    try:
        files = readme.tracked_files()
    except (UserError, FileNotFoundError):
        pytest.skip("not a git clone")
    told = readme.listed_files(readme.block(TEXT, "tree"))
    folders = tuple(entry for entry in told if entry.endswith("/"))
    missing = [path for path in files if path not in told and not path.startswith(folders or ("\0",))]
    assert not missing, "run `python -m replication.readme`"
    gone = [entry for entry in told if not any(path == entry or path.startswith(entry) for path in files)]
    assert not gone, "run `python -m replication.readme`"


def test_every_target_it_names_exists_and_every_target_is_named():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (readme.ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z]+(?:-[a-z]+)*)", TEXT, re.M))
    assert named <= targets
    assert targets - named <= {"help", "setup"}


def test_every_guarantee_names_tests_that_exist():
    rows = re.findall(r"^\|.*\|$", TEXT.split("## What is never lost")[1].split("\n## ")[0], re.M)[2:]
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert len(rows) >= 15
    for row in rows:
        happens, *told, shown = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert happens and len(told) == 2 and all(told), row
        names = re.findall(r"`(test_\w+)`", shown)
        assert names and all(f"def {name}(" in tests for name in names), row


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (readme.ROOT / target).exists(), target


def test_the_first_screen_has_claim_commands_and_verdicts():
    head = TEXT.splitlines()[:40]
    assert any("arXiv 2504.20834" in line for line in head)
    assert any(line.startswith("make all") for line in head) and any(line.startswith("make test") for line in head)
    assert any("verdicts: begin" in line for line in head)


def test_there_is_an_example_of_each_kind():
    assert [title for title, _ in EXAMPLES] == ["A task", "A method", "A model"]


@pytest.mark.parametrize("title, source", EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_the_examples_run_as_they_stand(title: str, source: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("done ")
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "summary.json").exists() and (run / "adapter").is_dir()


# The generator -----------------------------------------------------------------------------------------------------------------


def test_committed_results_show_in_table_and_figure(tmp_path):
    folder = tmp_path / "results" / "nano"
    write_tables(synthetic.headline(), folder, {})
    write_tables({"verdicts": verdicts(readme.CLAIMS, read_tables(folder))}, folder)
    table = readme.verdict_block(folder)
    judged = read_tables(folder)["verdicts"]
    for claim, verdict in zip(judged["claim"], judged["verdict"], strict=True):
        (line,) = [line for line in table.splitlines() if f"**{claim}** " in line]
        assert line.endswith(f"| {verdict} |")
    assert "![" not in table
    (folder / "figures").mkdir()
    (folder / "figures" / "full_vs_sparse.png").write_bytes(b"")
    assert "(results/nano/figures/full_vs_sparse.png)" in readme.verdict_block(folder)


def test_what_was_tried_is_summed_from_its_table(tmp_path):
    path = tmp_path / "tried.csv"
    assert readme.tried_block(path) == "not run"
    note("fuzz", {"answers": 1200}, failed=0, seconds=60, path=path)
    note("fuzz", {"answers": 34}, failed=0, seconds=60, path=path)
    note("soak", {"rounds": 8, "workers_killed": 21}, failed=0, seconds=3600, path=path)
    said = readme.tried_block(path)
    assert "fuzzing: answers 1,234; none broke a promise." in said
    assert "Soaked for 60 minutes: rounds 8, workers killed 21; nothing lost, nothing grew." in said
    note("fuzz", {"claims": 5}, failed=1, seconds=60, path=path)
    assert "1 broke a promise" in readme.tried_block(path)
    assert readme.block(TEXT, "tried") == readme.tried_block()


def test_blocks_are_replaced_and_nothing_else(tmp_path):
    copy = tmp_path / "README.md"
    shutil.copy(readme.README, copy)
    readme.write_readme(copy)
    assert not readme.write_readme(copy)
    text = "a <!-- x: begin (generated by python -m replication.readme) -->old<!-- x: end --> b"
    assert readme.with_block(text, "x", "new").replace("\n", "") == text.replace("old", "new")
    for broken in ("", text + text, text.replace("begin", "began")):
        with pytest.raises(UserError, match="markers"):
            readme.with_block(broken, "x", "new")


def test_a_tree_is_read_back_as_it_was_written():
    files = ["README.md", "replication/train.py", "replication/tasks/problem.py", "data/nano-base/config.json", "tests/tiny.py"]
    assert sorted(readme.listed_files(readme.tree_block(files))) == sorted([*files[:3], "data/nano-base/", files[4]])
    with pytest.raises(UserError, match="no gloss"):
        readme.tree_block(["mystery.bin"])


def test_the_cost_is_that_of_the_committed_benchmark():
    assert readme.block(TEXT, "cost") == readme.cost_block()


def test_a_cost_that_was_not_measured_is_not_run(tmp_path: Path):
    assert readme.cost_block(tmp_path) == "not run"
