"""Pins, Makefile and CI script: what is written down twice must say the same."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = ["help", "setup", "all", "smoke", "test", "test-full", "test-browser", "test-gpu", "test-real"]
TARGETS += ["figures", "report", "verify", "check", "publish", "small", "paper", "prompts", "paper-dryrun", "base", "bench"]
TARGETS += ["lab", "lint", "clean"]


def name_of(pin: str) -> str:
    return re.sub(r"[-_.]+", "-", pin.split("==")[0].split("[")[0]).lower()


def pins(path: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """The exact version of each package, by its name."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line) for line in lines), lines
    found = {name_of(line): line.split("==")[1] for line in lines}
    assert len(found) == len(lines), "a package is pinned twice"
    return found


def test_every_direct_dependency_is_a_range_around_its_pin():
    """Exact pins in the metadata replaced the torch of the environment that the package was installed into."""
    groups = (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    needed = [Requirement(text) for texts in groups for text in texts]
    assert {name_of(one.name) for one in needed} == set(pins())
    for one in needed:
        assert {spec.operator for spec in one.specifier} == {">=", "<"}, one
        assert one.specifier.contains(pins()[name_of(one.name)]), one


def test_conda_users_get_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pip[-1] == "--editable ."
    wanted = [name_of(Requirement(text).name) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
    assert {name_of(pin): pin.split("==")[1] for pin in pip[:-1]} == {name: pins()[name] for name in wanted}
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]


def test_what_is_installed_is_what_is_pinned():
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        name = Requirement(text).name
        assert metadata.version(name).split("+")[0] == pins()[name_of(name)], name


def imported(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


def test_the_package_imports_nothing_but_its_pinned_dependencies():
    own = {name_of(Requirement(text).name) for text in PROJECT["dependencies"]}
    provided = {module for module, packages in metadata.packages_distributions().items() if {name_of(p) for p in packages} & own}
    # Optional ones are imported inside the function that needs them.
    provided |= set(sys.stdlib_module_names) | {"replication", "ray"}
    for path in (ROOT / "replication").rglob("*.py"):
        extra = {"trl"} if path.parent.name == "integrations" else set()
        assert imported(path) <= provided | extra, f"{path}: {imported(path) - provided}"


def test_nobody_outside_a_room_imports_past_its_door():
    """A room is a folder of the package; its door is what its __init__ offers. Each module of integrations is a door of its own."""
    rooms = {path.parent.name for path in (ROOT / "replication").glob("*/__init__.py")} - {"integrations"}
    past = []
    for path in (path for folder in ("replication", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        home = path.relative_to(ROOT).parts[1]
        # The corpus of the nano base is written with the grammar of the tasks.
        closed = rooms - {home, "tasks" if home == "nano" else home}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                for name in (start + alias.name for alias in node.names):
                    inside = re.match(r"replication\.(\w+)\.(\w+)", name)
                    if inside and inside[1] in closed and (ROOT / f"replication/{inside[1]}/{inside[2]}.py").exists():
                        past.append(f"{path.relative_to(ROOT)}: {name}")
    assert not past


def test_make_installs_the_pinned_torch_by_plain_pip():
    makefile = (ROOT / "Makefile").read_text()
    torch = f"install --quiet torch=={pins()['torch']}\n"
    assert torch in makefile and makefile.index(torch) < makefile.index("-e '.[dev]'")
    installs = re.findall(r"pip install (.*)", makefile)
    assert all("-c constraints.txt" in line for line in installs if "-e" in line) and len(installs) == 4


def make(*words: str) -> subprocess.CompletedProcess:
    """make as from a terminal, also where these tests were started by make."""
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "CONDA_DEFAULT_ENV", "PROFILE", "OUT", "VENV")
    env = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(["make", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_help_is_the_default_and_lists_every_target():
    done = make()
    assert done.returncode == 0 and done.stdout == make("help").stdout
    assert re.findall(r"^  make ([a-z-]+) ", done.stdout, re.M) == TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_makes_the_environment_it_needs(target, tmp_path):
    """In a fresh clone (no environment at VENV) each target but help and clean begins by making one."""
    done = make("-n", target, f"VENV={tmp_path}/fresh")
    assert done.returncode == 0, done.stderr
    assert ("-m venv" in done.stdout) == (target not in ("help", "clean"))


def test_lab_opens_the_overview_from_either_environment(tmp_path):
    conda = make("-n", "lab", "CONDA_DEFAULT_ENV=replication", f"CONDA_PREFIX={tmp_path}").stdout
    assert f"{tmp_path}/bin/python -m jupyterlab notebooks/00_overview.ipynb" in conda
    plain = make("-n", "lab").stdout
    assert "JUPYTER_PREFER_ENV_PATH=1 .venv/bin/python -m jupyterlab notebooks/00_overview.ipynb" in plain


def test_the_browser_is_left_out_of_the_other_tests():
    for target in ("test", "test-full"):
        assert "not browser" in make("-n", target).stdout
    assert "-m browser tests/browser" in make("-n", "test-browser").stdout


def test_clean_never_touches_results_or_another_environment(tmp_path):
    text = make("-n", "clean", f"VENV={tmp_path}/mine").stdout
    assert "results" not in text and "mine" not in text


@pytest.mark.parametrize(("words", "measured"), [((), True), (("PROFILE=paper",), False), (("MODEL=/m",), False)])
def test_credit_against_the_truth_is_measured_where_it_is_known(words, measured, tmp_path):
    (line,) = [line for line in make("-n", "all", f"OUT={tmp_path}", *words).stdout.splitlines() if "diagnose" in line]
    condition = line.split(";")[0].removeprefix("if ")
    assert (subprocess.run(["bash", "-c", condition], check=False).returncode == 0) == measured
    (tmp_path / "credit.csv").touch()  # a diagnosis that was killed between its two tables
    assert (subprocess.run(["bash", "-c", condition], check=False).returncode == 0) == measured
    (tmp_path / "worked_example.csv").touch()
    assert subprocess.run(["bash", "-c", condition], check=False).returncode, "what is there is not measured again"


def test_variables_reach_the_command_line():
    words = make("-n", "all", "PROFILE=paper", "SEEDS=2", "WORKERS=3", "MODEL=/m", "SVAMP=/s.json", "PLAN=full", "OUT=/o").stdout
    words = " ".join(words.split())
    assert "sweep --profile 'paper' --out '/o' --plan 'full' --seeds '2' --set 'model=/m' --svamp '/s.json' --workers '3'" in words
    assert "notebooks --profile 'paper' --out '/o' --no-train --set 'variant=full' --set 'seeds=2'" in words


@pytest.mark.parametrize("value", ["results/Lee's runs", "a'; touch PWNED; echo '", '"$(touch PWNED)`touch PWNED`', "a, (b"])
def test_a_value_is_one_word_whatever_it_holds(value, tmp_path):
    """`make prompts OUT="a'; touch PWNED; echo '"` once ran what stood between, and a path with an apostrophe broke."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text('#!/bin/sh\nprintf "<%s>" "$@"; echo\n')  # says what it is given
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    given = value.replace("$", "$$")  # make's own sign
    names = ("OUT", "BASE_OUT", "PLAN", "SEEDS", "WORKERS", "ADDRESS", "MODEL", "REVISION", "SVAMP", "DATA", "REWARD", "METHOD")
    words = [f"VENV={tmp_path}", "ENGINE=ray", *(f"{name}={given}" for name in names)]
    for target, wanted in {
        "all": ("--out", "--plan", "--seeds", "--workers", "--address", "--svamp", "--data", "--reward", "--method"),
        "prompts": ("--out", "--svamp", "--data", "--reward"),
        "paper-dryrun": ("--svamp", "--workers"),
        "base": ("--out",),
        "help": (),
    }.items():
        done = make(target, *words)
        assert done.returncode == 0, done.stderr
        assert all(f"<{option}><{value}>" in done.stdout for option in wanted)
        assert target not in ("all", "prompts") or f"<--set><model={value}><--set><revision={value}>" in done.stdout
    assert value in make(*words).stdout
    assert not (ROOT / "PWNED").exists()


def test_a_cluster_is_named_to_the_sweep_alone():
    words = " ".join(make("-n", "all", "ENGINE=ray", "ADDRESS=head:6379").stdout.split())
    assert "--engine 'ray' --address 'head:6379'" in words and words.count("--engine") == 1
    assert "--engine" not in make("-n", "all").stdout


def test_an_old_python_is_one_line(tmp_path):
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("setup", f"VENV={tmp_path}/fresh", f"PYTHON={old}")
    assert done.returncode != 0 and "is older than Python 3.11: set PYTHON=" in done.stderr


def test_the_ci_script_runs_lint_tests_and_smoke_and_names_no_host():
    path = ROOT / ".ci/run"
    text = path.read_text()
    assert path.stat().st_mode & 0o111 and "set -euo pipefail" in text
    steps = re.findall(r"^step make ([a-z-]+)$", text, flags=re.MULTILINE)
    assert steps == ["setup", "lint", "test", "smoke"] and "step make paper-dryrun" in text
    for file in (path, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "environment.yml", ROOT / "constraints.txt"):
        assert "://" not in file.read_text() and "index-url" not in file.read_text(), file
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_data_files_are_in_the_package():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["replication"]
    found = {path for pattern in data for path in (ROOT / "replication").glob(pattern)}
    others = {path for path in (ROOT / "replication").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert others == found


def test_no_test_reaches_the_network():
    import socket

    with pytest.raises(OSError, match="tried to reach the network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="tried to look up"):
        socket.getaddrinfo("example.org", 80)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(server.getsockname(), timeout=5).close()
