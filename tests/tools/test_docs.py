"""README and docs: generated parts equal what they are generated from, commands exist, links lead somewhere, examples run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_tables as synthetic

from replication.__main__ import _parser
from replication.errors import UserError
from replication.names import CLAIMS, ROOT
from replication.statistics import verdicts
from replication.tables import read_tables, write_tables
from tools import docs

README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [*ROOT.glob("README.md"), *sorted(ROOT.glob("docs/*.md"))]}
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
#: Of docs/extending.md: what follows the language of a block (the name of a file, or nothing) and the block.
EXAMPLES = re.findall(r"^```(json|python|sh) ?(\S*)\n(.*?)^```", PAGES["docs/extending.md"], re.S | re.M)


@pytest.mark.parametrize("page, name", [(page, name) for page, blocks in docs.BLOCKS.items() for name in blocks])
def test_generated_parts_are_up_to_date(page, name):
    assert docs.with_block(PAGES[page], name, docs.BLOCKS[page][name]()) == PAGES[page], "run `python -m tools.docs`"


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_named_exists(page):
    named = set(re.findall(r"(?:^|`)make ([a-z]+(?:-[a-z]+)*)", PAGES[page], re.M))
    assert named <= TARGETS, named - TARGETS


def test_the_readme_names_every_target():
    named = set(re.findall(r"`make ([a-z]+(?:-[a-z]+)*)", README)) | {"help", "setup"}
    assert named >= TARGETS, TARGETS - named


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_is_one_that_the_parser_takes(page):
    for block in re.findall(r"^```sh\n(.*?)^```", PAGES[page], re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(r"python -m replication (.*?)(?: #.*| > .*)?$", line):
                assert _parser().parse_args(shlex.split(found.group(1))).command


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", PAGES[page]):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_the_first_screen_has_the_paper_and_both_commands():
    head = README.splitlines()[:15]
    assert any("arXiv 2504.20834" in line for line in head)
    assert any(line.startswith("make all") for line in head) and any(line.startswith("make test") for line in head)


def test_every_guarantee_names_tests_that_exist():
    rows = re.findall(r"^\|.*\|$", PAGES["docs/what-is-never-lost.md"], re.M)[2:]
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(rows) >= 10
    for row in rows:
        names = re.findall(r"`(test_\w+)`", row)
        assert names and all(f"def {name}(" in tests for name in names), row


def test_the_examples_run_as_they_stand(tmp_path: Path) -> None:
    """A block with a file's name is written there, any other is run, from top to bottom, as a reader would."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for language, name, block in EXAMPLES:
        if name:
            (tmp_path / name).write_text(block)
            continue
        commands = [["python", "-c", block]] if language == "python" else map(shlex.split, block.splitlines())
        for program, *words in commands:
            assert program == "python"
            done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr[-2000:]
    runs = sorted((tmp_path / "runs").iterdir())
    assert [run.name for run in runs] == ["close", "last", "library", "merged", "more", "sums", "tiny"]
    assert all((run / "summary.json").exists() and (run / "adapter").is_dir() == (run.name != "merged") for run in runs)


def test_the_readmes_example_prints_the_credit_of_each_transition():
    (source,) = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=True)
    rows = [eval(line) for line in done.stdout.splitlines()]
    # By hand: after 5 (mean 1/2) come 6 (2 of 3 right) and 9 (0); after 5 6 (2/3) come 7 (both right) and 8 (0).
    assert [row[:3] for row in rows] == [[0, 1, 0.167], [0, 2, 0.333], [1, 2, -0.667], [2, 1, -0.5]]


# The generator ------------------------------------------------------------------------------------------------------


def test_the_verdict_table_shows_the_committed_verdicts(tmp_path):
    folder = tmp_path / "results" / "nano"
    write_tables(synthetic.headline(), folder, {})
    write_tables({"verdicts": verdicts(CLAIMS, read_tables(folder))}, folder)
    table = docs.verdict_table(folder)
    judged = read_tables(folder)["verdicts"]
    for row in judged[judged["scale"] == "nano"].itertuples():
        (line,) = [line for line in table.splitlines() if f"**{row.claim}** " in line]
        assert line.endswith(f"| {row.verdict} |")
    assert "not run" in table


def test_blocks_are_replaced_and_nothing_else():
    text = "a <!-- x: begin (generated by python -m tools.docs) -->old<!-- x: end --> b"
    assert docs.with_block(text, "x", "new").replace("\n", "") == text.replace("old", "new")
    for broken in ("", text + text, text.replace("begin", "began")):
        with pytest.raises(UserError, match="markers"):
            docs.with_block(broken, "x", "new")
