"""The ablations: which learning rate, how many tokens, which tokens, which adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from replication.names import HEADLINE, METHOD_LABELS, SETTING_LABELS, TUNING_SEED, trained_in
from replication.report import style as p
from replication.report.select import in_order, items_of, runs_of
from replication.report.wording import counted, interval, listing, number, percent, span
from replication.statistics import CREDIT, SPARSITY, Tables, accuracy, best_rate, rank_gap_table, selection_gap_table, tuning

#: Fields that tell two choices of tokens apart; ``tokens`` is their name.
_CHOICE = ["setting", "method", "selector", "denominator", "tokens"]


def base_accuracy(tables: Tables, profile: str, setting: str) -> float:
    """Mean test accuracy of the untrained base in percent; NaN if it was not run."""
    runs = runs_of(tables, HEADLINE, profile)
    return float(100 * runs.loc[(runs["setting"] == setting) & (runs["method"] == "base"), "accuracy"].mean())


# Learning rate -----------------------------------------------------------------------------------------------------------------


def rate_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting, method and rate, in percent: what the validation split says, what the test split says, and what was chosen.

    chosen: the highest mean validation accuracy. used: the rate of the headline runs. edge: the chosen rate is the lowest or the
    highest tried, so that a better one may lie outside. forgiving to peak_high: see ``tuning``, empty but in the chosen row.
    """
    runs, headline = runs_of(tables, "learning_rate", profile), runs_of(tables, HEADLINE, profile)
    table = tuning({**tables, "runs": runs})
    if table.empty:
        return table
    table = in_order(table, "setting", "method", "learning_rate")
    table[["validation_accuracy", "accuracy"]] *= 100
    counts = {key: (items_of(own, "eval_items"), items_of(own)) for key, own in runs.groupby(["setting", "method"])}
    table[["validation_items", "items"]] = [counts[key] for key in zip(table["setting"], table["method"], strict=True)]
    used = set(zip(headline["setting"], headline["method"], headline.get("learning_rate", []), strict=False))
    table["used"] = [row in used for row in table[["setting", "method", "learning_rate"]].itertuples(index=False, name=None)]
    rates = table.groupby(["setting", "method"])["learning_rate"]
    low, high = rates.transform("min"), rates.transform("max")
    edges = np.select([low == high, table["learning_rate"] == low, table["learning_rate"] == high], ["", "lowest", "highest"], "")
    table["edge"] = np.where(table["chosen"], edges, "")
    return table


def draw_rate(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Validation accuracy against the learning rate, each method on the same grid, the chosen rate ringed."""
    runs = runs_of(tables, "learning_rate", profile)
    runs = runs[runs["validation_accuracy"].notna()]
    methods = [method for method in trained_in(runs["method"]) if (runs["method"] == method).any()]
    figure, axes = p.setting_panels("Does one learning rate settle a comparison?", list(table["setting"].unique()), width=4.6)
    for setting, axis in axes.items():
        rates = sorted(runs.loc[runs["setting"] == setting, "learning_rate"].unique())
        for shift, method in zip(np.geomspace(0.95, 1 / 0.95, len(methods)), methods, strict=True):
            own = runs[(runs["setting"] == setting) & (runs["method"] == method)]
            p.line_of_means(axis, own, "learning_rate", {rate: rate * shift for rate in rates}, method, "validation_accuracy")
            best = table[(table["setting"] == setting) & (table["method"] == method) & table["chosen"].astype(bool)]
            axis.scatter(
                best["learning_rate"] * shift, best["validation_accuracy"], s=190, facecolors="none",
                edgecolors=p.COLOURS[method], linewidths=1.6, zorder=6,
            )  # fmt: skip
        p.log_axis(axis, rates)
        axis.set_xlabel("learning rate of AdamW (log scale)")
        p.percent_axis(axis, "validation accuracy (%)")
    p.legend_beside(figure, axes.values())
    text = f"{p.about(profile)} Ring: the rate that validation chooses. Filled: mean; hollow: {p.seeds_of(runs, 'learning_rate')} "
    return p.caption(figure, text + f"at each point. {p.BARS}")


def say_rate(table: pd.DataFrame) -> list[str]:
    """The chosen rates, and how far the end of full-token GRPO depends on the rate alone."""
    parts = []
    for setting, own in table[table["chosen"].astype(bool)].groupby("setting", sort=False):
        same = own.groupby("learning_rate", sort=False)["method"].agg(lambda ids: listing([METHOD_LABELS[name] for name in ids]))
        parts.append(f"on {SETTING_LABELS[setting]} " + ", ".join(f"{rate:g} for {names}" for rate, names in same.items()))
    edges = table[table["edge"] != ""]
    edge = f"; {counted(len(edges), 'choice')} at an end of the grid, so a better rate may lie outside" if len(edges) else ""
    ends = table[table["method"] == "grpo"].groupby("setting", sort=False)["accuracy"].agg(["min", "max"])
    range_ = [f"{number(low)} and {percent(high)} on {SETTING_LABELS[setting]}" for setting, (low, high) in ends.iterrows()]
    said = [f"Validation chooses {'; '.join(parts)}{edge}."]
    chosen = table[table["chosen"].astype(bool)].dropna(subset="peak_low")
    if len(chosen):
        factors = chosen["peak_high"] / chosen["peak_low"]
        apart = f"; elsewhere they differ by a factor of up to {number(factors.max())}" if factors.max() > 1 else ""
        said[0] += f" Single seeds agree on the rate in {int((factors == 1).sum())} of {counted(len(chosen), 'choice')}{apart}."
    return said + ([f"By its rate alone, full-token GRPO ends between {' and between '.join(range_)}."] if range_ else [])


# Token fraction ----------------------------------------------------------------------------------------------------------------


def fraction_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting and choice of tokens, from the fewest to the most: share in the loss and test accuracy in percent.

    rates_tried, tuning_seeds and edge: the rates that the same choice was tuned with, with how many seeds, and whether its own rate
    is the lowest or the highest of them. Those of the three methods are from the ablation learning_rate.
    """
    runs, rows = _fraction_runs(tables, profile), []
    tuned = pd.concat([_named(runs_of(tables, name, profile)) for name in ("token_fraction", "learning_rate")])
    tuned = tuned[tuned["seed"] >= TUNING_SEED]
    for key, own in runs.groupby([*_CHOICE, "learning_rate"], sort=False) if len(runs) else ():
        row = dict(zip([*_CHOICE, "learning_rate"], key, strict=True))
        same = tuned[(tuned[_CHOICE] == list(key[:-1])).all(axis=1)] if len(tuned) else tuned
        tried = sorted(same["learning_rate"].unique()) if len(same) else []
        row |= {"rates_tried": len(tried), "tuning_seeds": same["seed"].nunique(), "edge": _edge(row["learning_rate"], tried)}
        row |= {"share": 100 * own["token_share"].iloc[0] if "token_share" in own else np.nan}
        found = accuracy(tables, own).scaled(100)
        row |= {"seeds": found.seeds, "items": items_of(own), "kept_fraction": 100 * own["kept_fraction"].mean()}
        row |= {"accuracy": found.value, "accuracy_low": found.low, "accuracy_high": found.high}
        rows.append(row | {"lowest": 100 * own["accuracy"].min(), "highest": 100 * own["accuracy"].max()})
    table = pd.DataFrame(rows)
    return in_order(table, "setting", "kept_fraction", "tokens") if rows else table


def _fraction_runs(tables: Tables, profile: str) -> pd.DataFrame:
    """The runs with tokens in the loss and the name of their choice, without those that tuned a rate."""
    runs = _named(runs_of(tables, "token_fraction", profile))
    return runs[(runs["kept_fraction"] > 0) & (runs["seed"] < TUNING_SEED)] if len(runs) else runs


def _named(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.assign(tokens=[_choice(run) for run in runs.to_dict("records")])


def _choice(run: dict[str, Any]) -> str:
    selector = run.get("selector", "rule")
    text = p.SELECTOR_LABELS.get(selector, str(selector))
    if pd.notna(run.get("token_share")):
        return f"{text}, {100 * run['token_share']:g} % of each completion"
    if run["method"] == "s_grpo" and pd.notna(run.get("keep_probability")):
        cutoff, limit = run.get("cutoff"), run.get("max_kept_tokens")
        text += " without the kept prefix" if cutoff == 0 else f", the first {cutoff:g}" if pd.notna(cutoff) else ""
        text += f", P {run['keep_probability']:g}, " + ("no cap" if pd.isna(limit) else f"at most {limit:g}")
    return text + (", divided by the completion" if (run["method"], run.get("denominator")) == ("s_grpo", "completion") else "")


def _edge(rate: float, tried: list[float]) -> str:
    """Whether a rate is the lowest or the highest of those tried; one rate has no ends."""
    return "" if len(tried) < 2 else {tried[0]: "lowest", tried[-1]: "highest"}.get(rate, "")


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
            colour, marker = p.SELECTOR_COLOURS.get(row["selector"], "#555555"), p.SELECTOR_MARKERS.get(row["selector"], "X")
            axis.plot([row["accuracy_low"], row["accuracy_high"]], [place - 0.12] * 2, color=colour, linewidth=2, alpha=0.6)
            axis.plot(row["accuracy"], place - 0.12, marker, color=colour, markersize=6.5)
            p.dots(axis, 100 * own["accuracy"], pd.Series(place + 0.22, index=own.index), own, colour, marker)
        p.rows_axis(axis, [f"{row['tokens']} | {percent(row['kept_fraction'])} | {row['learning_rate']:g}" for row in rows])
        axis.set_title(SETTING_LABELS[setting], loc="left")
        axis.set_xlabel("test accuracy (%)")
    text = (
        f"{p.about(profile)} A row: the choice | its share of the tokens (of those generated in groups that do not tie) | its "
        f"learning rate. Hollow: {p.seeds_of(runs, *_CHOICE[2:], 'learning_rate')}; filled: mean with its 95 % interval over seeds "
        "and items. Dashed: the base."
    )
    once = int((table["tuning_seeds"] == 1).sum())
    said = f" Of {once} of {counted(len(table), 'choice')} the learning rate was tuned with one seed." if once else ""
    return p.caption(figure, text + said)


def say_fraction(table: pd.DataFrame) -> list[str]:
    """Both ends of the range in each setting; then, in the first, how far apart the rules are at equally many tokens."""
    ends = []
    for setting, own in table.groupby("setting", sort=False):
        least, most = own.iloc[0], own[(own["method"] == "grpo") & (own["selector"] == "all")]
        text = f"on {SETTING_LABELS[setting]} with the fewest tokens ({least['tokens']}, {percent(least['kept_fraction'])}) "
        text += percent(least["accuracy"])
        ends.append(text + (f", with all of them {percent(most.iloc[0]['accuracy'])}" if len(most) else ""))
    first = f"Test accuracy {'; '.join(ends)}."
    picked = table[table["share"].notna()]
    spreads = {key: own for key, own in picked.groupby(["setting", "share"]) if own["selector"].nunique() > 1}
    if not spreads:
        return [first]
    setting, share = max(spreads, key=lambda one: np.ptp(spreads[one]["accuracy"]))
    best, worst = (spreads[setting, share].loc[spreads[setting, share]["accuracy"].agg(end)] for end in ("idxmax", "idxmin"))
    return [
        first,
        f"With {share:g} % of each completion on {SETTING_LABELS[setting]} it depends on which: "
        f"{p.SELECTOR_LABELS.get(worst['selector'], worst['selector'])} {percent(worst['accuracy'])}, "
        f"{p.SELECTOR_LABELS.get(best['selector'], best['selector'])} {percent(best['accuracy'])}.",
    ]


# Which tokens ------------------------------------------------------------------------------------------------------------------


def contrast_table(tables: Tables, profile: str) -> pd.DataFrame:
    """What one way of picking tokens gains over another, in points, with its interval over seeds, templates and items in pairs."""
    table = selection_gap_table(tables, profile)
    names = {"gap": "gain", "low": "gain_low", "high": "gain_high"}
    return table[table["gap"].notna()].rename(columns=names).reset_index(drop=True)


def draw_contrast(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """A row for each contrast: the gain in points with its interval, left of 0 a loss."""
    figure, axes = p.panels("Is it how many tokens, or which?", 1, width=8.4, height=max(0.24 * len(table) + 0.6, 2.0))
    axis = axes[0, 0]
    several = table["setting"].nunique() > 1
    names = [
        f"{row.tokens} minus {row.reference}, at {row.share:.3g} %" + several * f", {SETTING_LABELS[row.setting]}"
        for row in table.itertuples()
    ]
    for place, row in enumerate(table.itertuples()):
        clear = row.gain_low > 0 or row.gain_high < 0
        colour = "#0072B2" if row.gain_low > 0 else "#D55E00" if row.gain_high < 0 else "#777777"
        axis.plot([row.gain_low, row.gain_high], [place] * 2, color=colour, linewidth=2)
        axis.plot(row.gain, place, "o", color=colour, markerfacecolor=colour if clear else "white", markersize=6)
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
        SPARSITY: "Training on T-SPMO's tokens alone, at that credit, changes it by",
    }
    credit = [f"{asked[name]} {_changes(own)}." for name, own in pairs if name in asked]
    said: dict[str, list[str]] = {"better": [], "worse": [], "open": []}
    for (tokens, reference), own in pairs:
        if (tokens, reference) in asked:
            continue
        clear = {"better": own[own["gain_low"] > 0], "worse": own[own["gain_high"] < 0]}
        for kind, rows in clear.items():
            if len(rows):
                shares = f" at {len(rows)} of {len(own)} points" if len(own) > 1 else ""
                said[kind].append(f"{tokens} than {reference}{shares} (by {span(rows['gain'].abs())} points)")
        if all(rows.empty for rows in clear.values()):
            said["open"].append(f"{tokens} and {reference} ({span(own['gain'])} points)")
    rest = [f"Clearly {kind} are {'; '.join(said[kind])}." for kind in ("better", "worse") if said[kind]]
    rest += [f"No difference is seen between {'; '.join(said['open'])}."] if said["open"] else []
    return [" ".join(part) for part in (credit, rest) if part]


def _changes(own: pd.DataFrame) -> str:
    """The change of one contrast in each setting."""
    return listing([
        f"{interval(row.gain, row.gain_low, row.gain_high, ' points')} on {SETTING_LABELS[row.setting]}" for row in own.itertuples()
    ])  # fmt: skip


# LoRA rank ---------------------------------------------------------------------------------------------------------------------


def rank_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting, method and rank, at the rate that validation chooses: test accuracy in percent, and the gap to GRPO in points.

    Rank 0 is full fine-tuning. The gap has its interval over seeds, templates and items in pairs.
    """
    runs, rows = runs_of(tables, "lora_rank", profile), []
    for (setting, method, rank), own in runs.groupby(["setting", "method", "lora_rank"], sort=False) if len(runs) else ():
        rate, tried = best_rate(own), sorted(own["learning_rate"].unique())
        at_rate = 100 * own.loc[own["learning_rate"] == rate, "accuracy"]
        row = {"setting": setting, "method": method, "rank": int(rank), "learning_rate": rate, "rates_tried": len(tried)}
        row |= {"edge": _edge(rate, tried), "seeds": len(at_rate), "items": items_of(own)}
        row |= {"accuracy": at_rate.mean(), "lowest": at_rate.min(), "highest": at_rate.max()}
        rows.append(row)
    if not rows:
        return pd.DataFrame()
    gaps = rank_gap_table(tables, profile).rename(columns={"low": "gap_low", "high": "gap_high"})
    gaps["method"] = gaps["method"].replace({label: name for name, label in METHOD_LABELS.items()})
    table = pd.DataFrame(rows).merge(gaps[["setting", "rank", "method", "gap", "gap_low", "gap_high"]], how="left")
    table = in_order(table.assign(size=table["rank"].replace(0, 10**9)), "setting", "method", "size")  # full fine-tuning is last
    return table.drop(columns="size")


def draw_rank(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Test accuracy against the rank of the adapter, each method at the rate tuned for that rank."""
    runs = runs_of(tables, "lora_rank", profile).rename(columns={"lora_rank": "rank"})
    runs = runs.merge(table[["setting", "method", "rank", "learning_rate"]])
    ranks, settings = sorted(table["rank"].unique(), key=lambda rank: rank or 10**9), list(table["setting"].unique())
    methods = [method for method in trained_in(runs["method"]) if (runs["method"] == method).any()]
    figure, axes = p.setting_panels("Does the gap between sparse and full depend on the LoRA rank?", settings, width=5.4)
    for setting, axis in axes.items():
        base, here = base_accuracy(tables, profile, setting), runs[runs["setting"] == setting]
        p.base_line(axis, base)
        for shift, method in zip(np.linspace(-0.18, 0.18, len(methods)), methods, strict=True):
            places = {rank: place + shift for place, rank in enumerate(ranks)}
            p.line_of_means(axis, here[here["method"] == method], "rank", places, method, "accuracy")
        axis.set_xticks(range(len(ranks)), [str(rank) if rank else "full\nfine-tuning" for rank in ranks])
        axis.set_xlim(-0.5, len(ranks) - 0.5)
        axis.grid(axis="x", visible=False)
        axis.set_xlabel("rank of the adapter")
        p.percent_axis(axis, "test accuracy (%)", [*(100 * here["accuracy"]), base])
    p.legend_beside(figure, axes.values())
    edges = int((table["edge"] != "").sum())
    text = (
        f"{p.about(profile)} alpha / rank is the same at every rank. The learning rate of a point was chosen on validation among "
        f"those tried, with the seeds that are shown; at {edges} of {len(table)} points it is an end of the grid. "
        f"Filled: mean; hollow: {p.seeds_of(runs, 'rank')} at each point."
    )
    return p.caption(figure, f"{text} {p.BARS}")


def say_rank(table: pd.DataFrame) -> list[str]:
    """Each method at the smallest and the largest adapter; then at how many ranks each sparse method is clearly behind or ahead."""
    ends, gaps, several = [], [], table["setting"].nunique() > 1
    for (setting, method), own in table.groupby(["setting", "method"], sort=False):
        name = METHOD_LABELS[method] + several * f" on {SETTING_LABELS[setting]}"
        ends.append(f"{name} goes from {number(own.iloc[0]['accuracy'])} to {percent(own.iloc[-1]['accuracy'])}")
        own = own[own["gap"].notna()]
        if len(own):
            behind, ahead = int((own["gap_high"] < 0).sum()), int((own["gap_low"] > 0).sum())
            text = f"clearly behind GRPO at {behind} of {counted(len(own), 'rank')}" + (f" and ahead at {ahead}" if ahead else "")
            gaps.append(f"{name} is {text} ({span(own['gap'])} points)")
    low, high = (f"rank {rank}" if rank else "full fine-tuning" for rank in table["rank"].iloc[[0, -1]])
    said = [f"From {low} to {high}, {listing(ends)}."]
    return said + ([f"{'; '.join(gaps)}."] if gaps else [])
