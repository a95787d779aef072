"""The tokens in the loss: how many, and which."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from replication.names import SETTING_LABELS, TUNING_SEED
from replication.report import style as p
from replication.report.select import base_accuracy, items_of, with_all_seeds
from replication.report.wording import all_seeds, counted, interval, listing, percent, span
from replication.statistics import CREDIT, SPARSITY, Tables, accuracy, end_of_grid, in_order, runs_of

#: Fields that tell two choices of tokens apart; ``tokens`` is their name.
_CHOICE = ["setting", "method", "selector", "denominator", "tokens"]


# Token fraction ----------------------------------------------------------------------------------------------------------------


def fraction_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting and choice of tokens, from the fewest to the most: share in the loss and test accuracy in percent.

    rates_tried, tuning_seeds and edge: the rates that the same choice was tuned with, with how many seeds, and whether its own rate
    is the lowest or the highest of them. Those of the three methods are from the ablation learning_rate. all_seeds: see
    ``with_all_seeds``.
    """
    runs, rows = _fraction_runs(tables, profile), []
    tuned = pd.concat([_named(runs_of(tables, name, profile)) for name in ("token_fraction", "learning_rate")])
    tuned = tuned[tuned["seed"] >= TUNING_SEED]
    for key, own in runs.groupby([*_CHOICE, "learning_rate"], sort=False):
        row = dict(zip([*_CHOICE, "learning_rate"], key, strict=True))
        same = tuned[(tuned[_CHOICE] == list(key[:-1])).all(axis=1)]
        tried = sorted(same["learning_rate"].unique())
        row |= {"rates_tried": len(tried), "tuning_seeds": same["seed"].nunique(), "edge": end_of_grid(row["learning_rate"], tried)}
        row |= {"share": 100 * own["token_share"].iloc[0]}
        found = accuracy(tables, own).scaled(100)
        row |= {"seeds": found.seeds, "items": items_of(own), "kept_fraction": 100 * own["kept_fraction"].mean()}
        row |= found.columns("accuracy")
        row |= {"lowest": 100 * own["accuracy"].min(), "highest": 100 * own["accuracy"].max()}
        rows.append(row | {"all_seeds": with_all_seeds(tables, profile, own)})
    table = pd.DataFrame(rows)
    return in_order(table, "setting", "kept_fraction", "tokens") if rows else table


def _fraction_runs(tables: Tables, profile: str) -> pd.DataFrame:
    """The runs with tokens in the loss and the name of their choice, without those that tuned a rate."""
    runs = _named(runs_of(tables, "token_fraction", profile))
    return runs[(runs["kept_fraction"] > 0) & (runs["seed"] < TUNING_SEED)]


def _named(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.assign(tokens=[_choice(run) for run in runs.to_dict("records")])


def _choice(run: dict[str, Any]) -> str:
    text = p.SELECTOR_LABELS[run["selector"]]
    if pd.notna(run["token_share"]):
        return f"{text}, {100 * run['token_share']:g} % of each completion"
    if run["method"] == "s_grpo" and pd.notna(run["keep_probability"]):
        cutoff, limit = run["cutoff"], run["max_kept_tokens"]
        text += " without the kept prefix" if cutoff == 0 else f", the first {cutoff:g}" if pd.notna(cutoff) else ""
        text += f", P {run['keep_probability']:g}, " + ("no cap" if pd.isna(limit) else f"at most {limit:g}")
    return text + (", divided by the completion" if (run["method"], run["denominator"]) == ("s_grpo", "completion") else "")


def draw_fraction(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """A row for each choice of tokens, the best on top: a dot for each seed, and the mean with its interval."""
    runs, settings = _fraction_runs(tables, profile), list(table["setting"].unique())
    longest = table["setting"].value_counts().max()
    size = {"rows": len(settings), "width": 10.5, "height": 0.27 * longest + 0.8}
    figure, axes = p.panels("Which tokens, and how many, does an update need?", 1, **size)
    for axis, setting in zip(axes[:, 0], settings, strict=True):
        base = base_accuracy(tables, profile, setting)
        if np.isfinite(base):
            axis.axvline(base, color=p.COLOURS["base"], linestyle=(0, (5, 3)), linewidth=1.2, zorder=1)
        rows = table[table["setting"] == setting].sort_values("accuracy", ascending=False, kind="stable").to_dict("records")
        for place, row in enumerate(rows):
            names = [*_CHOICE, "learning_rate"]
            own = runs[(runs[names] == [row[name] for name in names]).all(axis=1)]
            colour, marker = p.SELECTOR_COLOURS[row["selector"]], p.SELECTOR_MARKERS[row["selector"]]
            axis.plot([row["accuracy_low"], row["accuracy_high"]], [place - 0.12] * 2, color=colour, linewidth=2, alpha=0.6)
            axis.plot(row["accuracy"], place - 0.12, marker, color=colour, markersize=6.5)
            p.dots(axis, 100 * own["accuracy"], pd.Series(place + 0.22, index=own.index), own, colour, marker)
        p.rows_axis(axis, [f"{row['tokens']} | {percent(row['kept_fraction'])} | {row['learning_rate']:g}" for row in rows])
        axis.set_title(SETTING_LABELS[setting], loc="left")
        axis.set_xlabel("test accuracy (%)")
    text = (
        f"{p.about(profile)} A row: the choice | its share of the tokens (of those generated in groups that do not tie) | its "
        f"learning rate. Hollow: {p.seeds_of(runs, *_CHOICE[2:], 'learning_rate')}; filled: mean with its 95 % interval over "
        "seeds, templates and items. Dashed: the base on the same items."
    )
    once = int((table["tuning_seeds"] == 1).sum())
    said = f" Of {once} of {counted(len(table), 'choice')} the learning rate was tuned with one seed." if once else ""
    return p.caption(figure, text + said)


def say_fraction(table: pd.DataFrame) -> list[str]:
    """The fewest tokens, T-SPMO's and all in each setting; then, in one, how far apart the rules are at equally many tokens."""
    ends = []
    for setting, own in table.groupby("setting", sort=False):
        shown = (own.index == own.index[0]) | own["selector"].isin(("trie", "all"))
        texts = [f"{row.tokens}: {percent(row.accuracy)} with {percent(row.kept_fraction)}" for row in own[shown].itertuples()]
        ends.append(f"on {SETTING_LABELS[setting]} {'; '.join(texts)}")
    first = f"Test accuracy with so many of the tokens, {'. '.join(ends)}.{all_seeds(table)}"
    picked = table[table["share"].notna()]
    spreads = {key: own for key, own in picked.groupby(["setting", "share"]) if own["selector"].nunique() > 1}
    if not spreads:
        return [first]
    setting, share = max(spreads, key=lambda one: np.ptp(spreads[one]["accuracy"]))
    best, worst = (spreads[setting, share].loc[spreads[setting, share]["accuracy"].agg(end)] for end in ("idxmax", "idxmin"))
    return [
        first,
        f"Of the choices that keep {span(spreads[setting, share]['kept_fraction'])} % of the tokens on {SETTING_LABELS[setting]}, "
        f"{p.SELECTOR_LABELS[worst['selector']]} reaches {percent(worst['accuracy'])} and "
        f"{p.SELECTOR_LABELS[best['selector']]} {percent(best['accuracy'])}.",
    ]


# Which tokens ------------------------------------------------------------------------------------------------------------------


def draw_contrast(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """A row for each contrast: the difference in points with its interval, left of 0 a loss."""
    figure, axes = p.panels("Is it how many tokens, or which?", 1, width=8.4, height=max(0.24 * len(table) + 0.6, 2.0))
    axis = axes[0, 0]
    several = table["setting"].nunique() > 1
    names = [
        f"{row.tokens} minus {row.reference}, at {row.share:.3g} %" + several * f", {SETTING_LABELS[row.setting]}"
        for row in table.itertuples()
    ]
    for place, row in enumerate(table.itertuples()):
        clear = row.difference_low > 0 or row.difference_high < 0
        colour = p.POSITIVE if row.difference_low > 0 else p.NEGATIVE if row.difference_high < 0 else "#777777"
        axis.plot([row.difference_low, row.difference_high], [place] * 2, color=colour, linewidth=2)
        axis.plot(row.difference, place, "o", color=colour, markerfacecolor=colour if clear else "white", markersize=6)
    axis.axvline(0, color="black", linewidth=1)
    p.rows_axis(axis, names)
    axis.set_xlabel("difference in test accuracy (points)")
    text = f"{p.about(profile)} Bars: 95 % bootstrap over seeds, templates and items, all in pairs (from "
    text += f"{table['seeds'].min():.0f} seeds on), not corrected for their number. Filled: the interval leaves 0 out. "
    text += "At: the share of the tokens."
    return p.caption(figure, text)


def say_contrast(table: pd.DataFrame) -> list[str]:
    """What T-SPMO's credit and its sparsity change; then which contrasts leave 0 out, in either direction, and which do not."""
    pairs = table.groupby(["tokens", "reference"], sort=False)
    asked = {
        CREDIT: "Adding T-SPMO's credit to GRPO, with all tokens in the loss, changes the accuracy by",
        SPARSITY: "Dropping all tokens but T-SPMO's, with the same credit, changes it by",
    }
    credit = [f"{asked[name]} {_changes(own)}." for name, own in pairs if name in asked]
    said: dict[str, list[str]] = {"better": [], "worse": [], "open": []}
    for (tokens, reference), own in pairs:
        if (tokens, reference) in asked:
            continue
        clear = {"better": own[own["difference_low"] > 0], "worse": own[own["difference_high"] < 0]}
        for kind, rows in clear.items():
            if len(rows):
                shares = f" at {len(rows)} of {len(own)} points" if len(own) > 1 else ""
                said[kind].append(f"{tokens} than {reference}{shares} (by {span(rows['difference'].abs())} points)")
        if all(rows.empty for rows in clear.values()):
            said["open"].append(f"{tokens} and {reference}")
    rest = [f"Clearly {kind} are {'; '.join(said[kind])}." for kind in ("better", "worse") if said[kind]]
    others = counted(len(said["open"]), "contrast")
    rest += [f"In the other {others} the interval holds 0; the table has them."] if said["open"] else []
    return [" ".join(part) for part in (credit, rest) if part]


def _changes(own: pd.DataFrame) -> str:
    """The change of one contrast in each setting."""
    return listing([
        f"{interval(row.difference, row.difference_low, row.difference_high, ' points')} on {SETTING_LABELS[row.setting]}"
        for row in own.itertuples()
    ])  # fmt: skip
