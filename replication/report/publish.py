"""From a reader's results to the committed ones, and from a committed file back to the runs that made it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import unescape

from replication.errors import UserError
from replication.runs import atomic_write, dirty, explained, make_folder, read_json
from replication.tables import read_tables

#: What is committed of a results folder: never run directories, never executed notebooks, only their pages.
_PUBLISHED = ("*.csv", "manifest.json", "report.html", "figures/*.png", "figures/*.svg", "notebooks/*.html",
              "notebooks/seconds.csv")  # fmt: skip


def publish(profile: str, source: Path, target: Path) -> list[Path]:
    """Copy tables, manifest, figures and pages from ``source`` over ``target``; what is no longer made is removed there.

    Raises:
        UserError: for smoke results or a dry run, planned runs that are not finished, or a tree (now, or when a run was made)
            with uncommitted changes; ``target`` is then untouched.
    """
    tables = read_tables(source)
    manifest = _manifest(source)
    runs = tables.get("runs")
    if profile == "smoke" or manifest.get("dry_run"):
        raise UserError("smoke results and dry runs are no evidence and are never published: run profile nano or paper")
    if runs is None or set(runs["profile"]) != {profile}:
        raise UserError(f"{source} does not hold runs of profile {profile} alone: name another folder with --out")
    unfinished = runs[~runs["status"].isin(["done", "diverged"])]
    if len(unfinished):
        raise UserError(f"{len(unfinished)} planned runs of {source} are not finished: run `make all PROFILE={profile}` first")
    if dirty() is not False:
        raise UserError("the working tree has changes that are not committed (or is no git clone): commit them first")
    if not manifest.get("runs_dirty") is manifest.get("dirty") is False:
        raise UserError(
            f"runs or tables of {source} were made, or begun, from a tree with uncommitted changes or outside git: "
            "make them again from a commit"
        )
    files = {path.relative_to(source): path for pattern in _PUBLISHED for path in sorted(source.glob(pattern))}
    if Path("report.html") not in files or not any(path.parts[0] == "figures" for path in files):
        raise UserError(f"{source} has no report or no figures: run `make report figures PROFILE={profile}` first")
    for relative, path in files.items():
        make_folder((target / relative).parent)
        with explained(path):
            atomic_write(target / relative, path.read_bytes())
    for pattern in _PUBLISHED:
        for path in target.glob(pattern):
            if path.relative_to(target) not in files:
                with explained(path):
                    path.unlink()
    return [target / relative for relative in files]


def provenance(path: Path) -> str:
    """What made a figure, table or page: the provenance inside it, or the manifest beside it, with the commands of its runs."""
    inside = _embedded(path)
    folder = next((parent for parent in list(path.resolve().parents)[:2] if (parent / "manifest.json").exists()), None)
    if inside is None and folder is None:
        raise UserError(f"{path} holds no provenance and there is no manifest.json beside it: it was not made by this project")
    manifest = _manifest(folder) if folder else {}
    found: dict[str, Any] = {"file": path.name, **({"figure": inside} if inside is not None else {})}
    shown = inside.get("run_ids") if isinstance(inside, dict) else None
    # What was measured without training (diagnose, each benchmark) has a manifest of its own within the folder's.
    measured = {name: part for name, part in manifest.items() if isinstance(part, dict) and "commit" in part}
    own = {name: part for name, part in measured.items() if path.name in _listed(part.get("tables"))}
    without_runs = bool(measured) and (bool(own) or shown == [] or "commit" not in manifest)
    if without_runs:
        found["measured_by"] = {name: _origin(part) for name, part in (own or measured).items()}
    else:
        found["made_by"] = _origin(manifest)
    sums = manifest.get("tables")
    known = sums.get(path.name) if isinstance(sums, dict) else None
    if known is not None:
        same = hashlib.sha256(path.read_bytes()).hexdigest() == known
        found["checksum"] = "as in the manifest" if same else "NOT that of the manifest: the file was changed afterwards"
    text = json.dumps(found, indent=2, ensure_ascii=False)
    if without_runs:
        return f"{text}\nmeasured by the command above, not from runs"
    origins = manifest.get("runs")
    commands = _commands(folder, set(map(str, _listed(shown))), origins if isinstance(origins, dict) else {}) if folder else []
    return "\n".join([text, f"made from {len(commands)} runs:", *commands])


def _manifest(folder: Path) -> dict[str, Any]:
    found = read_json(folder / "manifest.json", "a manifest")
    if not isinstance(found, dict):
        raise UserError(f"{folder / 'manifest.json'} is not a manifest (edited?): make it again with `make report`")
    return found


def _listed(names: Any) -> list[Any]:
    return names if isinstance(names, list) else []


def _origin(manifest: Mapping[str, Any]) -> dict[str, Any]:
    names = ("commit", "dirty", "made", "run_commits", "runs_dirty", "seeds", "command", "seconds", "peak_rss_bytes")
    names += ("python", "platform", "cpu", "cores", "threads", "memory_bytes", "gpu", "packages", "runs_python", "runs_packages")
    return {name: manifest[name] for name in names if name in manifest}


def _commands(folder: Path, only: set[str], origins: dict[str, Any]) -> list[str]:
    """A line for each run: id, command, and what its manifest had: commit, checksums of config, base and data, time, memory."""
    runs = read_tables(folder).get("runs")
    if runs is None:
        return []
    runs = runs[runs["status"].isin(["done", "diverged"])].drop_duplicates("run_id")
    if only:
        runs = runs[runs["run_id"].isin(only)]
    lines = []
    for row in runs.itertuples():
        origin = origins.get(row.run_id)
        origin = {name: value for name, value in origin.items() if value is not None} if isinstance(origin, dict) else {}
        lines.append(f"{row.run_id}  {row.command}" + (f"\n    {json.dumps(origin)}" if origin else ""))
    return lines


def _embedded(path: Path) -> Any:
    """The JSON that save_figure put into a PNG or SVG; None for other files."""
    text = None
    if path.suffix == ".png":
        from PIL import Image, UnidentifiedImageError

        try:
            with explained(path), Image.open(path) as image:
                text = image.info.get("Description")
        except UnidentifiedImageError:
            raise UserError(f"{path} is not a PNG file") from None
    elif path.suffix == ".svg":
        with explained(path):
            found = re.search(r"<dc:description>(.*?)</dc:description>", path.read_text("utf-8", "replace"), re.S)
        text = unescape(found.group(1), {"&quot;": '"'}) if found else None
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None
