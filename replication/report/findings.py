"""What became of the claims: five sentences to open with, the rows of the verdict table, and the log of negative results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import yaml

from replication.names import HEADLINE, METHOD_LABELS, NEGATIVE_RESULTS, SETTING_LABELS
from replication.report.headline import accuracy_table
from replication.report.html import render
from replication.report.select import in_order, runs_of
from replication.report.wording import counted, interval, listing, number, percent, points, span
from replication.statistics import Tables, detectable_differences, detectable_gap, difference, p_text

#: The setting that the claims on word problems are judged on.
MAIN = "word_problems after"
#: A verdict as the end of a sentence about a claim.
_PHRASES = {
    "supported": "this holds here",
    "not supported": "this does not hold here",
    "inconclusive": "here the intervals leave it open",
    "not run": "here it was not measured",
    "by design": "here it is true by construction",
}


def conclusions(judged: pd.DataFrame, tables: Tables, profile: str) -> list[str]:
    """Five sentences for a reader who knows nothing yet: what the paper claims, what was measured, and the verdict.

    One sentence where these runs judge no claim.
    """
    own = judged[judged["scale"] == profile]
    if own.empty or (own["verdict"] == "not run").all():
        return ["These runs judge none of the claims."]
    table, runs = accuracy_table(tables, profile), runs_of(tables, HEADLINE, profile)
    accuracy = {setting: rows.set_index("method")["accuracy"] for setting, rows in table.groupby("setting", sort=False)}
    main = MAIN if MAIN in accuracy else next(iter(accuracy))
    kept = table.groupby("method")["kept_fraction"].agg(lambda values: list(values.dropna()))

    def at(method: str) -> str:
        return percent(accuracy[main][method]) if method in accuracy[main] else "(not run)"

    def minus(method: str, other: str) -> str:
        """Over the seeds and items that both have, in every setting."""
        said = []
        for setting, own in runs.groupby("setting", sort=False):
            gap = difference(tables, own[own["method"] == method], own[own["method"] == other])
            said += [f"{points(100 * gap.value)} on {SETTING_LABELS[setting]}"] if gap else []
        return listing(said or ["(not run)"])

    def share(method: str) -> str:
        return f"{span(kept[method])} %" if len(kept.get(method, [])) else "(not run)"

    def gain(method: str) -> str:
        own = table[(table["setting"] == "multiplication") & (table["method"] == method)]
        return f"{number(own['gain'].iloc[0])} points" if len(own) and "gain" in own and own["gain"].notna().all() else "(not run)"

    return [
        f"The model solves {at('base')} of the {SETTING_LABELS[main]} before training, {at('s_grpo')} after S-GRPO and "
        f"{at('t_spmo')} after T-SPMO, the two methods that learn from a part of the tokens; the paper reports over 70 % for "
        f"both: {_verdict(own, 'C2', 'C3')}.",
        f"The paper finds that GRPO, which learns from every token, does not improve over the untrained model: its test accuracy "
        f"changes by {minus('grpo', 'base')}; {_verdict(own, 'C4')}.",
        f"The paper offers that learning from fewer tokens may hold overfitting back: in test accuracy S-GRPO differs from GRPO by "
        f"{minus('s_grpo', 'grpo')}, T-SPMO by {minus('t_spmo', 'grpo')}; {_verdict(own, 'C9')}.",
        f"Of the tokens, S-GRPO learns from {share('s_grpo')} (the paper: 30 to 50 %; {_verdict(own, 'C5')}) and T-SPMO from "
        f"{share('t_spmo')} (the paper: under 5 %; {_verdict(own, 'C6')}).",
        f"The paper calls T-SPMO strong on multiplication: it ends {gain('t_spmo')} above the untrained model, GRPO {gain('grpo')} "
        f"above it; {_verdict(own, 'C7')}.",
    ]


def _verdict(judged: pd.DataFrame, *claims: str) -> str:
    """The verdict on claims of the paper in these rows: one phrase where all agree, otherwise each by name."""
    rows = judged[judged["claim"].isin(claims) | judged["counterpart"].isin(claims)]
    if rows.empty:
        return "no claim of this scale is about it"
    if rows["verdict"].nunique() == 1:
        return _PHRASES[rows["verdict"].iloc[0]]
    return ", ".join(f"{row.claim}: {row.verdict}" for row in rows.itertuples())


def verdict_rows(judged: pd.DataFrame) -> list[dict[str, str]]:
    """The verdicts as texts, each claim of the paper followed by its counterparts in the nano lab.

    Keys: claim, mark, text, verdict, ours (with its interval), paper, seeds, items, rule, note, p, scale, counterpart.
    """
    texts = [_verdict_row(row) for row in judged.to_dict("records")]
    counterparts = {row["claim"]: row["counterpart"] for row in texts}
    ordered = []
    for row in texts:
        if counterparts[row["claim"]] not in counterparts:
            ordered += [row, *(other for other in texts if other["counterpart"] == row["claim"])]
    return ordered


def verdict_table(judged: pd.DataFrame, *claims: str) -> str:
    """The verdicts of some claims (default: all) as an HTML table, and those not run in one line below it.

    What the paper says of a claim stands beside its counterpart in the nano lab.
    """
    rows = verdict_rows(judged)
    paper = {row["claim"]: row["paper"] for row in rows}
    rows = [row | {"paper": row["paper"] or paper.get(row["counterpart"], "")} for row in rows if row["claim"] in (claims or paper)]
    missing = [row for row in rows if row["verdict"] == "not run"]
    return render("verdicts.html", rows=[row for row in rows if row not in missing], missing=missing)


def _verdict_row(row: Mapping[str, Any]) -> dict[str, str]:
    unit = " %" if row["unit"] == "%" else f" {row['unit']}"
    names = ("claim", "text", "mark", "rule", "note", "verdict", "scale", "counterpart")
    plain = {name: "" if pd.isna(row[name]) else str(row[name]) for name in names}
    plain["text"] = plain["text"].replace(" %", "\u00a0%")  # a line must not begin with the sign
    paper = "" if pd.isna(row["paper_value"]) else str(row["paper_value"]).removesuffix(".0")
    plain["paper"] = paper + (unit if any(character.isdigit() for character in paper) else "")
    plain |= {name: "" if pd.isna(row[name]) else str(int(row[name])) for name in ("seeds", "items")}
    plain["ours"] = "" if pd.isna(row["value"]) else interval(row["value"], row["low"], row["high"], unit)
    tested = pd.notna(row["p_holm"])
    p, adjusted = (p_text(row[name], bool(row["p_at_floor"])) for name in ("p", "p_holm"))
    plain["p"] = f"No difference at all: p {p}, {adjusted} after Holm's correction" if tested else ""
    return plain


def negative_results(judged: pd.DataFrame) -> list[dict[str, Any]]:
    """The dated log of what did not come out as thought, each entry with the verdicts that its claims have now."""
    now = {row["claim"]: row for row in verdict_rows(judged)}
    rows: list[dict[str, Any]] = []
    if not NEGATIVE_RESULTS.exists():  # an installed package
        return rows
    for entry in yaml.safe_load(NEGATIVE_RESULTS.read_text("utf-8"))["results"]:
        today = [f"{name} {now[name]['verdict']}, {now[name]['ours'] or 'no value'}" for name in entry["claims"]]
        rows.append({**entry, "date": str(entry["date"]), "now": "; ".join(today)})
    return rows


def power(tables: Tables, profile: str) -> str:
    """Which difference the test set can show at all, so that "inconclusive" can be read."""
    table = accuracy_table(tables, profile)
    if table.empty:
        return "Not run."
    items = int(table["items"].min())
    text = (
        f"With {items} test items, one seed and no pairing, two methods near 70 % must differ by about "
        f"{number(100 * detectable_gap(0.7, items))} points to be told apart four times in five."
    )
    differences = detectable_differences(tables, profile)
    if differences.empty:
        return text
    rows = in_order(differences, "setting", "method").itertuples()
    parts = [f"{METHOD_LABELS[row.method]} on {SETTING_LABELS[row.setting]} {number(row.detectable)} points" for row in rows]
    alike = differences[(differences["low"] <= 0) & (differences["high"] >= 0)]
    within = [
        f"{METHOD_LABELS[row.method]} on {SETTING_LABELS[row.setting]} within {number(row.equal_within)} points"
        for row in in_order(alike, "setting", "method").itertuples()
    ]
    text += f" Equal to GRPO, as far as the intervals allow: {listing(within)}." if within else ""
    return (
        f"{text} With items in pairs and {counted(differences['seeds'].min(), 'seed')}, a difference to GRPO shows four times in "
        f"five from this size on: {listing(parts)}."
    )
