"""From the tables of ``diagnose``: gradient and credit on decisive tokens, one group token by token, and noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from replication.names import METHOD_LABELS, SETTING_LABELS, SETTINGS
from replication.report import style as p
from replication.report.wording import listing, number, percent, points, span
from replication.statistics import Tables, table, with_setting

#: The selectors that are the methods themselves; the others are controls.
_METHOD_OF = {"all": "grpo", "rule": "s_grpo", "trie": "t_spmo"}
_SHARES = ("gradient_decisive", "credit_decisive", "kept_fraction", "distinct_transitions_in_loss")
#: The column of a rule in the table of the worked example.
_CREDIT = "{}: % of the credit"
_NOISE = ("tokens_in_loss", "snr_update", "snr_per_1000_tokens", "cosine_with_grpo")


def truth_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting and method, in percent with 95 % bootstrap intervals over problems: gradient, credit and tokens in the loss."""
    rows = [row for credit in _by_setting(tables, profile) for row in _wide(credit, _SHARES)]
    return pd.DataFrame([row for row in rows if row["selector"] in _METHOD_OF]).drop(columns="rule", errors="ignore")


def noise_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per setting and rule: signal to noise of an update's gradient and its cosine to full-token GRPO's, with their intervals.

    The controls were measured in one setting, the methods in all.
    """
    return pd.DataFrame([row for credit in _by_setting(tables, profile) for row in _wide(credit, _NOISE)])


def _by_setting(tables: Tables, profile: str) -> list[pd.DataFrame]:
    """The rows of credit.csv about the untrained base, a frame for each setting that was measured."""
    credit = with_setting(table(tables, "credit"))
    credit = credit[credit["profile"] == profile]
    return [credit[credit["setting"] == setting] for setting in SETTINGS if (credit["setting"] == setting).any()]


def _wide(credit: pd.DataFrame, quantities: tuple[str, ...]) -> list[dict]:
    """The rows of one setting: a row for each rule, a column for each quantity and its ends."""
    decisive = credit.loc[credit["quantity"] == "tokens_decisive", "value"]
    rows = []
    for (method, selector), own in credit[credit["method"] != "generated"].groupby(["method", "selector"], sort=False):
        found = own.set_index("quantity")
        row = {"setting": own["setting"].iloc[0], "method": method, "rule": p.SELECTOR_LABELS[selector]}
        row |= {"selector": selector, "problems": found["n"].iloc[0], "redraws": found["redraws"].iloc[0]}
        for name in quantities:
            for column, end in (("value", ""), ("low", "_low"), ("high", "_high")):
                row[name + end] = found[column].get(name, np.nan)
        rows.append(row | ({"tokens_decisive": decisive.iloc[0]} if quantities is _SHARES else {}))
    return rows


def draw_truth(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """The share of decisive tokens in each method's gradient, and beside it their share of its credit, setting by setting."""
    settings, methods = list(table["setting"].unique()), list(_METHOD_OF.values())
    figure, axes = p.panels("Gradient and credit on decisive tokens", 2, width=4.4, height=0.9 + 0.75 * len(settings))
    labels = {
        "gradient_decisive": "decisive tokens' gradient,\nprojected on the whole (%)",
        "credit_decisive": "share of |weight × advantage|\non decisive tokens (%)",
    }
    for axis, (name, label) in zip(axes[0], labels.items(), strict=True):
        for row in table.to_dict("records"):
            place = settings.index(row["setting"]) + 0.24 * (methods.index(row["method"]) - 1)
            colour, named = p.COLOURS[row["method"]], METHOD_LABELS[row["method"]] if row["setting"] == settings[0] else None
            axis.plot([row[f"{name}_low"], row[f"{name}_high"]], [place] * 2, color=colour, linewidth=2)
            axis.plot(row[name], place, p.MARKERS[row["method"]], color=colour, markersize=7, label=named)
        for place, own in enumerate(settings):
            decisive = table.loc[table["setting"] == own, "tokens_decisive"].iloc[0]
            of_all = "share of decisive tokens\namong all generated" if place == 0 else None
            axis.plot([decisive] * 2, [place - 0.4, place + 0.4], color="black", ls=(0, (3, 2)), lw=1.2, label=of_all)
        axis.set_xlim(min(-3.0, axis.get_xlim()[0]), max(103.0, axis.get_xlim()[1]))
        axis.set_xlabel(label)
        p.rows_axis(
            axis,
            [SETTING_LABELS[setting].replace(" (", "\n(") for setting in settings] if axis is axes[0, 0] else [""] * len(settings),
        )
    p.legend_beside(figure, axes)
    first = table.iloc[0]
    text = (
        f"{p.about(profile)} The untrained base on {first['problems']:.0f} problems of each kind, {first['redraws']:.0f} groups "
        "each; bars: 95 % bootstrap over problems. Decisive by grammar: the digits of the operands and the operator; in products "
        "the last digit of the second factor. Left: projection of the decisive tokens' gradient on the whole one; it can leave "
        "0 to 100. It can be small where the share of credit is large, since a token that was rarely drawn has a large gradient. "
        "T-SPMO counts each distinct transition once."
    )
    return p.caption(figure, text)


def say_truth(table: pd.DataFrame) -> list[str]:
    """Where decisive tokens have a larger share of T-SPMO's gradient than of GRPO's, and where a smaller; then of the credit."""
    wide = table.set_index(["setting", "method"])
    both = [setting for setting in wide.index.unique("setting") if {(setting, "grpo"), (setting, "t_spmo")} <= set(wide.index)]
    if not both:
        return ["T-SPMO was not measured beside GRPO."]
    sparse, full = (wide.xs(method, level="method").loc[both] for method in ("t_spmo", "grpo"))
    gradient = _against(sparse, full, "gradient_decisive", " %")
    return [
        f"The part of T-SPMO's gradient that comes from decisive tokens, against that of GRPO's, is {gradient}.",
        f"They get {span(sparse['credit_decisive'])} % of T-SPMO's credit and {span(full['credit_decisive'])} % of GRPO's. "
        "T-SPMO's is high partly by construction: its credit estimates how much a token changes the chance to be right.",
    ]


def _against(sparse: pd.DataFrame, full: pd.DataFrame, name: str, unit: str = "") -> str:
    """In which settings (the index) T-SPMO's number is larger than GRPO's, and in which smaller."""
    parts: dict[str, list[str]] = {"larger": [], "smaller": []}
    for setting, mine in sparse.iterrows():
        its = full.loc[setting]
        clear = mine[f"{name}_low"] > its[f"{name}_high"] or mine[f"{name}_high"] < its[f"{name}_low"]
        numbers = f"{number(mine[name])} against {number(its[name])}{unit}"
        word = "larger" if mine[name] > its[name] else "smaller"
        parts[word].append(f"{SETTING_LABELS[str(setting)]} ({numbers}{'' if clear else ', the intervals overlap'})")
    return "; ".join(f"{word} on {listing(settings)}" for word, settings in parts.items() if settings)


def draw_noise(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Signal-to-noise ratio of the gradient per update and per token in the loss, and its angle to full-token GRPO's."""
    table = table[table["setting"] == table["setting"].mode()[0]].reset_index(drop=True)  # with the controls
    figure, axes = p.panels("How much of a gradient is signal?", 3, width=3.9, height=3.1)
    labels = {
        "snr_update": "signal / noise of an update (log scale)",
        "snr_per_1000_tokens": "the same per 1000 tokens in the loss (log scale)",
        "cosine_with_grpo": "cosine to GRPO's expected gradient",
    }
    for axis, (name, label) in zip(axes[0], labels.items(), strict=True):
        _interval_dots(axis, table, name)
        if name == "cosine_with_grpo":
            axis.set_xlim(min(0.0, axis.get_xlim()[0]), max(1.05, axis.get_xlim()[1]))
        else:
            ends = table[[f"{name}_low", name, f"{name}_high"]].to_numpy(dtype=float)
            p.log_axis(axis, [10.0**power for power in range(-6, 9)])
            left = ends[ends > 0].min() / 1.6
            axis.set_xlim(left, ends[ends > 0].max() * 1.6)
            for place in np.flatnonzero(table[name] <= 0):
                colour = p.SELECTOR_COLOURS.get(table["selector"].iloc[place], "#555555")
                axis.plot(1.2 * left, place, "<", color=colour, markerfacecolor="white", markersize=8, zorder=4)
        axis.set_xlabel(label)
        p.rows_axis(axis, list(table["rule"]) if axis is axes[0, 0] else [""] * len(table))
    text = (
        f"{_sample(table, profile)} Signal: squared length of the mean gradient of an update; noise: its mean squared deviation "
        "when completions and kept tokens are drawn again for the same problems. Bars: 95 % bootstrap over problems. Hollow arrow "
        "at the left edge: an estimate of 0 or less, the signal is not above noise. A cosine under 1: another direction than "
        "full-token GRPO's, which may be a better one. It is a dot product divided by two lengths, and "
        "an estimate of the noise is subtracted from each of the three: by chance the lengths can come out too small, and then it "
        "exceeds 1. No marker: a length came out as 0 or less."
    )
    return p.caption(figure, text)


def say_noise(table: pd.DataFrame) -> list[str]:
    """The signal of an update, T-SPMO's against GRPO's; then what differs from GRPO's direction."""
    methods = table[table["selector"].isin(_METHOD_OF)].set_index(["setting", "method"])
    sparse, full = (methods[methods.index.get_level_values("method") == name].droplevel("method") for name in ("t_spmo", "grpo"))
    sparse = sparse[sparse.index.isin(full.index)]
    ratio = _against(sparse, full, "snr_update")
    said = [f"The signal-to-noise ratio of T-SPMO's update, against GRPO's, is {ratio}."] if ratio else []
    cosines = methods["cosine_with_grpo"].dropna().groupby("method", sort=False).agg(list).drop("grpo", errors="ignore")
    cosine = [f"{METHOD_LABELS[name]} {span(values)}" for name, values in cosines.items()]
    said += (
        [f"The cosine to GRPO's expected gradient is {listing(cosine)}. Below 1 the expected update points elsewhere than GRPO's."]
        if cosine
        else []
    )
    return said or ["T-SPMO was not measured beside GRPO."]


def _interval_dots(axis: Axes, table: pd.DataFrame, name: str) -> None:
    for place, row in enumerate(table.to_dict("records")):
        colour, marker = p.SELECTOR_COLOURS[row["selector"]], p.SELECTOR_MARKERS[row["selector"]]
        axis.plot([row[f"{name}_low"], row[f"{name}_high"]], [place] * 2, color=colour, linewidth=2)
        axis.plot(row[name], place, marker, color=colour, markersize=7)


def _sample(table: pd.DataFrame, profile: str) -> str:
    first = table.iloc[0]
    groups = f"{first['problems']:.0f} {SETTING_LABELS[first['setting']]}, {first['redraws']:.0f} groups of each"
    return f"{p.about(profile)} The untrained base on {groups}."


# One group, token by token -----------------------------------------------------------------------------------------------------


def _example(tables: Tables, profile: str) -> pd.DataFrame:
    """worked_example.csv of a profile, the right completion first."""
    rows = table(tables, "worked_example")
    rows = rows[rows["profile"] == profile]
    return rows.sort_values(["correct", "completion", "position"], ascending=[False, True, True], kind="stable")


def example_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per completion, the tokens in the order of how much they changed the chance to be right (at most three, in points).

    Beside each the share of the completion's credit that a rule gives it, in percent.
    """
    rows = []
    for completion, own in _example(tables, profile).groupby("completion", sort=False):
        tokens = own.drop_duplicates("position").set_index("position")
        worth = tokens["worth"].dropna()
        for position in worth.abs().sort_values(ascending=False, kind="stable").index[:3]:
            token = tokens.loc[position]
            row = {"completion": completion, "answer": "right" if token["correct"] else "wrong"}
            row |= {"position": position, "token": str(token["token"]).strip() or "\u2423", "worth": 100 * worth[position]}
            for selector, its in own.groupby("selector", sort=False):
                total = its["credit"].abs().sum()
                here = its.loc[its["position"] == position, "credit"].abs().sum()
                row[_CREDIT.format(p.SELECTOR_LABELS[selector])] = 100 * here / total if total > 0 else 0.0
            rows.append(row)
    return pd.DataFrame(rows)


def draw_example(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """One right and one wrong completion of a group, token by token, with the credit that each method gives."""
    rows = _example(tables, profile)
    longest, shown = int(rows["position"].max()) + 1, rows["completion"].unique()
    figure, axes = p.panels("One group, token by token", 1, rows=len(shown), width=max(0.25 * longest + 1.6, 8.0), height=2.5)
    for axis, completion in zip(axes[:, 0], shown, strict=True):
        own = rows[rows["completion"] == completion]
        _tokens(axis, own, longest)
        axis.set_title("right completion" if own["correct"].iloc[0] else "wrong completion", loc="left", pad=58)
    first = rows.iloc[0]
    text = (
        f"{str(first['prompt']).splitlines()[0]} ({int(first['right_in_group'])} of {int(first['group_size'])} completions right.) "
        "Blue: made more likely, orange: less; the deeper, the larger the share of this completion's credit on that token "
        "(square-root scale). Dot: not in the loss. Framed: decisive tokens. First row: how a token changed the chance to be "
        f"right; blank: not at all; ?: too few other samples go the same way to know. \u2423: a blank. {p.about(profile)}"
    )
    return p.caption(figure, text)


def _tokens(axis: Axes, rows: pd.DataFrame, longest: int) -> None:
    tokens = rows.drop_duplicates("position")
    names, lines = ["effect on the chance\nto be right"], [(tokens["position"], tokens["worth"], 1.0)]
    for selector, own in rows.groupby("selector", sort=False):
        names.append(p.SELECTOR_LABELS[selector])
        lines.append((own["position"], own["credit"], own["credit"].abs().sum() or 1.0))
    for row, (positions, values, whole) in enumerate(lines):
        for position, value in zip(positions, values, strict=True):
            if np.isnan(value):
                mark = "·" if row else "?"
                axis.text(position, row, mark, ha="center", va="center", color="#999999", fontsize=8)
                continue
            depth = min(1.0, float(np.sqrt(abs(value) / whole)))
            if depth > 0.02:
                colour = p.POSITIVE if value > 0 else p.NEGATIVE
                axis.add_patch(Rectangle((position - 0.46, row - 0.43), 0.92, 0.86, facecolor=colour, alpha=depth, lw=0))
    for position, token, decisive in tokens[["position", "token", "decisive"]].itertuples(index=False):
        word = "END" if str(token).startswith("<|") else str(token).strip() or "\u2423"
        weight = "bold" if decisive else "normal"
        axis.text(position, -0.6, word, ha="center", va="bottom", fontsize=8, fontweight=weight, rotation=90)
        if decisive:
            axis.add_patch(Rectangle((position - 0.5, -0.5), 1, len(names), fill=False, edgecolor="black", lw=1.1, zorder=4))
    p.rows_axis(axis, names)
    axis.set_xlim(-0.6, longest - 0.4)
    axis.set_ylim(len(names) - 0.45, -0.6)
    axis.set_xticks([])
    axis.grid(False)
    axis.axhline(0.5, color="#777777", linewidth=0.8)
    for side in axis.spines.values():
        side.set_visible(False)


def say_example(table: pd.DataFrame) -> list[str]:
    """For each completion the token that changed most, and the share of the credit that the three methods give it."""
    said = []
    for _, own in table.groupby("completion", sort=False):
        row = own.iloc[0]
        labels = {METHOD_LABELS[name]: _CREDIT.format(p.SELECTOR_LABELS[rule]) for rule, name in _METHOD_OF.items()}
        parts = [f"{name} gives it {percent(row[label])}" for name, label in labels.items() if label in row]
        said.append(
            f"In the {row['answer']} completion {row['token']!r} mattered most: it changed the chance of a right answer by "
            f"{points(row['worth'])}. Of the completion's credit {listing(parts)}."
        )
    return said[:2]
