"""What became of the claims: five sentences to open with, the rows of the verdict table, and the log of negative results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import yaml

from replication.names import HEADLINE, METHOD_LABELS, NEGATIVE_RESULTS, SETTING_LABELS, TASK_LABELS
from replication.report.headline import LEVEL, accuracy_table, learning_table, still_rising
from replication.report.html import render
from replication.report.rate_and_rank import CLEAR_FROM, not_at_best_rate, rate_table, suits_better
from replication.report.regimes import overfitting_table
from replication.report.select import items_of
from replication.report.wording import counted, counted_span, interval, listing, number, p_text, percent, span
from replication.statistics import TUNED_WITHIN, Tables, at_best_rate, detectable_differences, difference, runs_of

#: The setting that the claims on word problems are judged on.
MAIN = "word_problems after"
#: Two methods are called alike only where their difference is under this many points.
EQUAL_WITHIN = 5.0
_SCALES = {"nano": "In the nano lab", "small": "On Qwen2.5-0.5B-Instruct", "paper": "On Qwen2-1.5B"}
#: A verdict as the answer to a question.
_WORDS = {"supported": "yes", "not supported": "no", "inconclusive": "open", "by design": "by construction"}
#: A verdict as the end of a sentence about a claim.
_PHRASES = {
    "supported": "this holds here",
    "not supported": "this does not hold here",
    "inconclusive": "here the intervals leave it open",
    "not run": "here it was not measured",
    "by design": "here it is true by construction",
}


def short_answer(judged: pd.DataFrame, profile: str) -> str:
    """Whether the paper holds, in one line: what these runs say, and what its own scale says."""
    scales = dict.fromkeys([profile, "paper"])
    said = [f"{_SCALES[scale]}, {short}" for scale in scales if scale in _SCALES and (short := _short(judged, scale))]
    ran = (judged.loc[judged["scale"] == "paper", "verdict"] != "not run").any()
    return " ".join(["Does the paper hold?", *said, *([] if ran else ["At its own scale nothing was run."])])


def _short(judged: pd.DataFrame, scale: str) -> str:
    """The verdicts of a scale on the paper's two main findings in a word each; nothing where neither was judged."""
    own, parts = judged[(judged["scale"] == scale) & (judged["verdict"] != "not run")], []
    for text, claims in (
        ("S-GRPO and T-SPMO lift word problems to over 70 %", ("C2", "C3")),
        ("full-token GRPO with LoRA does not improve", ("C4",)),
    ):
        if found := set(_about(own, *claims)["verdict"]):
            parts.append(f"“{text}”: {_WORDS[found.pop()] if len(found) == 1 else 'in part'}")
    return "; ".join(parts) + "." if parts else ""


def conclusions(judged: pd.DataFrame, tables: Tables, profile: str, table: pd.DataFrame | None = None) -> list[str]:
    """Five items for a reader who knows nothing yet: accuracy, whether GRPO improves, sparse against GRPO, speed, and tokens.

    One sentence where these runs judge no claim.

    Args:
        table: ``accuracy_table`` of these tables, where it is at hand: it takes a while.
    """
    own = judged[judged["scale"] == profile]
    if own.empty or (own["verdict"] == "not run").all():
        return ["These runs judge none of the claims."]
    table = accuracy_table(tables, profile) if table is None else table
    if table.empty:
        return [f"The {HEADLINE} runs are missing: the verdicts below rest on other runs."]
    main = table[table["setting"] == (MAIN if MAIN in set(table["setting"]) else table["setting"].iloc[0])].set_index("method")

    def at(method: str) -> str:
        return percent(main.loc[method, "accuracy"]) if method in main.index else "(not run)"

    return [
        f"On the {main['items'].iloc[0]:.0f} test items that all methods answer, the model solves {at('base')} of the "
        f"{SETTING_LABELS[main['setting'].iloc[0]]} before training, {at('s_grpo')} after S-GRPO and {at('t_spmo')} after T-SPMO. "
        f"Both learn from a part of the tokens. The paper reports over 70 % for both: {_verdict(own, 'C2', 'C3')}."
        + _under(table, 70),
        "The paper reports that GRPO with LoRA, which learns from every token, does not improve on SVAMP. "
        + _improvement(table[(table["method"] == "grpo") & table["gain"].notna()])
        + (" The verdict stays open; its note says why." if "inconclusive" in set(_about(own, "C4")["verdict"]) else ""),
        _comparison(detectable_differences(tables, profile), not_at_best_rate(rate_table(tables, profile))),
        _still_rising(learning_table(tables, profile)),
        _tokens(table),
    ]


def limits(judged: pd.DataFrame, tables: Tables, profile: str) -> list[str]:
    """What a critic would ask of the comparison of sparse with full, each question with the numbers that answer it.

    Nothing where no claim compares them.
    """
    own = _about(judged[judged["scale"] == profile], "C9").dropna(subset="p_holm")
    own = own[own["unit"] == "points"]
    if own.empty:
        return []
    runs, rates = runs_of(tables, HEADLINE, profile), rate_table(tables, profile)
    trained = runs[runs["method"] != "base"]
    lengths = listing(sorted({f"{steps:.0f}" for steps in trained["steps_done"].dropna()}))
    parts = [f"{p_text(row.p_holm, row.p_at_floor)} in {row.claim}" for row in own.itertuples()]
    said = [
        f"All headline runs train one base for {lengths} steps.",
        "S-GRPO's cutoff, keep probability and cap were chosen beforehand. Of its settings only the learning rate was tuned.",
        "The intervals are not corrected for multiple tests. With Holm's correction, p of the difference from GRPO is "
        f"{listing(parts)}.",
        suits_better(not_at_best_rate(rates)),
        _at_best_rates(tables, profile),
        _held_out(trained),
        _more_steps(overfitting_table(tables, profile)),
    ]
    return [one for one in said if one]


def _at_best_rates(tables: Tables, profile: str) -> str:
    """The sparse methods against GRPO in the tuning runs of several seeds, each at the rate that validation chooses."""
    runs, parts = runs_of(tables, "learning_rate", profile), []
    seeds = runs.groupby(["setting", "method"])["seed"].transform("nunique")
    runs = runs[seeds >= CLEAR_FROM]
    for (setting, method), own in runs[runs["method"].isin(("s_grpo", "t_spmo"))].groupby(["setting", "method"], sort=False):
        full = runs[(runs["setting"] == setting) & (runs["method"] == "grpo")]
        if len(full) and (gap := difference(tables, at_best_rate(own), at_best_rate(full))):
            value = interval(*(100 * end for end in (gap.value, gap.low, gap.high)))
            parts.append(f"{METHOD_LABELS[method]} {value} on {SETTING_LABELS[setting]}")
    if not parts:
        return ""
    return (
        f"A headline rate counts as tuned if no other is over {100 * TUNED_WITHIN:g} points better on validation. In the runs that "
        f"tuned it ({counted(int(seeds.max()), 'seed')}), each method at its best rate, the differences from GRPO in points are "
        f"{listing(parts)}."
    )


def _held_out(runs: pd.DataFrame) -> str:
    """Mean accuracies on the templates that no training item has."""
    means = runs[runs["setting"] == MAIN].groupby("method", sort=False)["held_out_accuracy"].mean().dropna()
    if means.empty:
        return ""
    listed = listing([f"{METHOD_LABELS[name]} {percent(100 * mean)}" for name, mean in means.items()])
    return (
        "Training items have the templates of the test items. On templates held out of training, accuracy on "
        f"{SETTING_LABELS[MAIN]} is {listed}."
    )


def _more_steps(few: pd.DataFrame) -> str:
    """The accuracies of the runs that saw few items many times."""
    parts = []
    for (items, steps), rows in few.groupby(["train_items", "steps"]) if len(few) else ():
        ends = [f"{METHOD_LABELS[row.method]} {percent(row.accuracy)}" for row in rows.itertuples()]
        parts.append(f"after {steps} steps on {items} items ({counted(rows['seeds'].min(), 'seed')}) {listing(ends)}")
    return f"Other runs saw few training items many times. Their test accuracy is {'; '.join(parts)}." if parts else ""


def _where(settings: Iterable[str], of: int) -> str:
    """One setting by its name, several by their number."""
    settings = set(settings)
    if len(settings) == 1:
        return f"on {SETTING_LABELS[settings.pop()]}"
    return f"in all {of} settings" if len(settings) == of else f"in {len(settings)} of {of} settings"


def _improvement(gains: pd.DataFrame) -> str:
    """Whether GRPO gained over the base: where the whole interval is above 0."""
    if gains.empty:
        return "Here it was not run."
    up, rest = gains[gains["gain_low"] > 0], gains[~(gains["gain_low"] > 0)]
    if up.empty:
        where = _where(rest["setting"], len(gains))
        return f"Nor does it clearly here: its accuracy changes by {span(rest['gain'])} points {where}."
    by_task = up.groupby(up["setting"].str.split().str[0], sort=False)["gain"]
    parts = [f"{span(own)} points on {TASK_LABELS[task]}" for task, own in by_task]
    said = f"Here it does {_where(up['setting'], len(gains))}, by {listing(parts)}"
    return f"{said}; elsewhere, by {span(rest['gain'])} points, it does not clearly." if len(rest) else f"{said}."


def _comparison(gaps: pd.DataFrame, untuned: pd.DataFrame) -> str:
    """Where a sparse method is clearly ahead of GRPO, and where clearly behind: by intervals that leave 0 out.

    Settings in which a method has a better rate than the headline's (``not_at_best_rate``) do not count.
    """
    if gaps.empty:
        return "In accuracy nothing can be said: the sparse methods and GRPO were not run with the same seeds."
    apart = gaps["setting"].isin(untuned.loc[untuned["method"] != "ppo", "setting"])
    left_out = [SETTING_LABELS[setting] for setting in gaps.loc[apart, "setting"].unique()]
    gaps, said = gaps[~apart], []
    if left_out:
        said = [f"Not counted here: {listing(left_out)}, where validation prefers another learning rate than the headline's."]
    if gaps.empty:
        return said[0]
    ahead, behind = gaps[gaps["difference_low"] > 0], gaps[gaps["difference_high"] < 0]
    found = []
    for words, clear in (("more", ahead), ("less", behind)):
        found += [
            f"{METHOD_LABELS[method]} is clearly {words} accurate than GRPO "
            f"{_where(own['setting'], (gaps['method'] == method).sum())}, by {span(own['difference'].abs())} points."
            for method, own in clear.groupby("method")
        ] or [f"No sparse method is clearly {words} accurate than GRPO."]
    return " ".join([*found, "Clearly: the 95 % interval of the paired difference excludes 0.", *said])


def _still_rising(table: pd.DataFrame) -> str:
    """How often the validation accuracy of each method had not levelled off."""
    if table.empty:
        return "Whether the methods had levelled off when training stopped was not measured."
    rising = still_rising(table)
    if rising.empty:
        return f"No method still clearly improved by {LEVEL:g} point or more in the last third of its steps."
    steepest = rising.loc[rising["rise_in_last_third"].idxmax()]
    parts = [
        f"for {METHOD_LABELS[method]} {_where(own['setting'], int((table['method'] == method).sum()))}"
        for method, own in rising.groupby("method", sort=False)
    ]
    return (
        f"Accuracy was still clearly rising when training stopped: {listing(parts)}. {METHOD_LABELS[steepest['method']]} "
        f"{_where([steepest['setting']], 1)} gained most, {number(steepest['rise_in_last_third'])} points in the last third."
    )


def _tokens(table: pd.DataFrame) -> str:
    """The share of the tokens that the sparse methods learn from, and the gains on multiplication."""
    kept = table.groupby("method")["kept_fraction"].agg(lambda values: list(values.dropna()))
    parts = [f"{METHOD_LABELS[name]} on {span(kept[name])} %" for name in ("s_grpo", "t_spmo") if len(kept.get(name, []))]
    said = "The share of the tokens in the loss was not measured."
    if parts:
        said = f"{listing(parts).replace(' on', ' updates on', 1)} of the tokens generated in groups that do not tie."
    gains = table[table["setting"] == "multiplication"].set_index("method").get("gain", pd.Series(dtype=float)).dropna()
    parts = [f"{METHOD_LABELS[name]} gains {number(gains[name])} points" for name in ("t_spmo", "grpo") if name in gains]
    strong = listing(parts) if parts else "neither it nor GRPO was run"
    return f"{said} On multiplication, where the paper calls T-SPMO strong, {strong}."


def _under(table: pd.DataFrame, level: float) -> str:
    """Where on word problems a sparse method stays under the level that the paper reports for it."""
    rows = table[table["method"].isin(("s_grpo", "t_spmo")) & (table["accuracy"] < level) & (table["setting"] != "multiplication")]
    names = zip(rows["setting"].map(SETTING_LABELS), rows["method"].map(METHOD_LABELS), rows["accuracy"], strict=True)
    return "".join(f" On {setting} {method} ends at {percent(accuracy)}." for setting, method, accuracy in names)


def _about(judged: pd.DataFrame, *claims: str) -> pd.DataFrame:
    """The rows about claims of the paper: themselves and their counterparts."""
    return judged[judged["claim"].isin(claims) | judged["counterpart"].isin(claims)]


def _verdict(judged: pd.DataFrame, *claims: str) -> str:
    """The verdict on claims of the paper in these rows, as the end of a sentence."""
    found = set(_about(judged, *claims)["verdict"])
    if not found:
        return "no claim of this scale is about it"
    return _PHRASES[found.pop()] if len(found) == 1 else "the verdicts on the two differ"


def verdict_rows(judged: pd.DataFrame) -> list[dict[str, str]]:
    """The verdicts as texts, each claim of the paper followed by its counterparts in the nano lab.

    Keys: claim, mark, text, verdict, ours (with its interval), paper, seeds, items, rule, note, p, scale, counterpart.
    """
    texts = [_verdict_row(row) for row in judged.to_dict("records")]
    place = {row["claim"]: number for number, row in enumerate(texts)}
    return sorted(texts, key=lambda row: place.get(row["counterpart"], place[row["claim"]]))


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
    plain["p"] = f"Test of zero difference: p {p}; with Holm's correction {adjusted}" if tested else ""
    return plain


def negative_results(judged: pd.DataFrame) -> list[dict[str, Any]]:
    """The dated log of what did not come out as expected, each entry with the verdicts that its claims have now."""
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
    runs = runs_of(tables, HEADLINE, profile)
    if runs.empty:
        return "Not run."
    differences = detectable_differences(tables, profile)
    if differences.empty:
        return "Not known: the sparse methods and GRPO were not run with the same seeds, or with one alone."
    open_ = differences[(differences["difference_low"] <= 0) & (differences["difference_high"] >= 0)]
    within = [
        f"{METHOD_LABELS[row.method]} is within {number(row.equal_within)} points of GRPO on {SETTING_LABELS[row.setting]}"
        for row in open_[open_["equal_within"] < EQUAL_WITHIN].itertuples()
    ]
    return (
        f"With {counted(items_of(runs), 'test item')} in pairs and {counted_span(differences['seeds'], 'seed')}, we detect a true "
        f"difference from GRPO four times in five if it exceeds {span(differences['detectable'])} points, depending on setting and "
        "method." + "".join(f" {one}." for one in within)
    )
