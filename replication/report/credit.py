"""Credit against the truth, from the tables of ``diagnose``: where credit and gradient fall, token by token, and their noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from replication.names import METHOD_LABELS, SETTING_LABELS, SETTINGS
from replication.report import style as p
from replication.report.wording import interval, listing, number, percent, points
from replication.statistics import Tables, with_setting

POSITIVE, NEGATIVE = "#0072B2", "#D55E00"
_KINDS = (
    ("credit_right", "decisive token,\nright sign", POSITIVE),
    ("credit_wrong", "decisive token,\nwrong sign", NEGATIVE),
    ("credit_nothing", "decisive in form,\nnothing was decided", "#a9c6dd"),
    ("credit_unknown", "decisive in form,\nworth not known", "#b5b5b5"),
    (None, "any other token", "#e6e6e6"),
)
#: The selectors that are the methods themselves; the others are controls.
_METHOD_OF = {"all": "grpo", "rule": "s_grpo", "trie": "t_spmo"}
_TRUTH = ("kept_fraction", "gradient_decisive", "credit_decisive", "credit_right", "credit_wrong", "credit_nothing")
_TRUTH += ("credit_unknown", "sign_right")
_NOISE = ("tokens_in_loss", "snr_update", "snr_per_1000_tokens", "cosine_with_grpo")


def truth_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per rule, in percent with 95 % bootstrap intervals over problems: where its gradient and its credit fall."""
    return _wide(tables, profile, _TRUTH)


def noise_table(tables: Tables, profile: str) -> pd.DataFrame:
    """Per rule: signal to noise of an update's gradient and its cosine to full-token GRPO's, with their intervals."""
    return _wide(tables, profile, _NOISE)


def _wide(tables: Tables, profile: str, quantities: tuple[str, ...]) -> pd.DataFrame:
    """credit.csv of the untrained base in its first setting, a row for each rule, a column for each quantity and its ends."""
    credit = with_setting(tables.get("credit", pd.DataFrame(columns=["profile", "task", "policy"])))
    credit = credit[(credit["profile"] == profile) & (credit["policy"] == "base")]
    setting = next((setting for setting in SETTINGS if (credit["setting"] == setting).any()), None)
    if setting is None:
        return pd.DataFrame()
    credit = credit[credit["setting"] == setting]
    decisive = credit.loc[credit["quantity"] == "tokens_decisive", "value"]
    rows = []
    for (method, selector), own in credit[credit["method"] != "generated"].groupby(["method", "selector"], sort=False):
        found = own.set_index("quantity")
        row = {"setting": setting, "method": method, "rule": p.SELECTOR_LABELS.get(selector, selector), "selector": selector}
        row |= {"problems": found["n"].iloc[0], "redraws": found["redraws"].iloc[0]}
        for name in quantities:
            for column, end in (("value", ""), ("low", "_low"), ("high", "_high")):
                row[name + end] = found[column].get(name, np.nan)
        rows.append(row | ({"tokens_decisive": decisive.iloc[0]} if quantities is _TRUTH and len(decisive) else {}))
    return pd.DataFrame(rows)


def draw_truth(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Left: the share of each rule's gradient that comes from decisive tokens. Right: where its credit falls."""
    figure, axes = p.panels("Credit against the truth", 2, width=5.0, height=3.3)
    gradient, bars = axes[0]
    decisive = table["tokens_decisive"].iloc[0]
    _interval_dots(gradient, table, "gradient_decisive")
    gradient.axvline(decisive, color="black", linestyle=(0, (4, 3)), linewidth=1)
    gradient.set_xlim(min(-3.0, gradient.get_xlim()[0]), 103)
    gradient.set_xlabel("share of the gradient from decisive tokens (%)")
    for place, row in enumerate(table.to_dict("records")):
        left = 0.0
        for quantity, label, colour in _KINDS:
            size = float(np.nan_to_num(row[quantity])) if quantity else 100 - left
            once = label if place == 0 else None
            bars.barh(place, size, left=left, color=colour, height=0.68, label=once, edgecolor="white", lw=0.4)
            left += size
        text = percent(row["credit_right"]) if row["credit_right"] >= 0.1 else "< 0.1 %"
        bars.annotate(text, (101, place), va="center", fontsize=8.5, color=POSITIVE, annotation_clip=False)
    bars.axvline(decisive, color="black", linestyle=(0, (4, 3)), linewidth=1, label=f"decisive tokens:\n{decisive:.0f} % of all")
    bars.set_xlim(0, 112)
    bars.set_xticks(range(0, 101, 20))
    bars.set_xlabel("share of the method's credit (%)")
    p.rows_axis(gradient, list(table["rule"]))
    p.rows_axis(bars, [""] * len(table))
    p.legend_beside(figure, axes)
    text = (
        f"{_sample(table, profile)} Left: projection of the decisive tokens' gradient on the whole one; bars: 95 % bootstrap over "
        "problems. Right: |weight x advantage|; number: decisive, right sign. A sign is right if it is that of the token's worth, "
        "the change of the chance to be right, measured on other samples; under 5 points nothing was decided, within two standard "
        "errors of 0 the worth is not known."
    )
    return p.caption(figure, text)


def say_truth(table: pd.DataFrame) -> list[str]:
    """The gradient first; then the credit, with what of it is true by the definition of T-SPMO."""
    rows = {row["method"]: row for row in table[table["selector"].isin(_METHOD_OF)].to_dict("records")}
    decisive = percent(table["tokens_decisive"].iloc[0])
    gradient = [f"{METHOD_LABELS[name]} {_with_ends(row, 'gradient_decisive', ' %')}" for name, row in rows.items()]
    credit = [f"{METHOD_LABELS[name]} {percent(row['credit_right'])}" for name, row in rows.items()]
    return [
        f"{decisive} of the generated tokens are decisive in form; their share of the gradient is {listing(gradient)}.",
        f"Credit on tokens that really decided, with the right sign: {listing(credit)}; T-SPMO's share is partly true by "
        "definition, since its advantage estimates the same change of chance that a token's worth is.",
    ]


def draw_noise(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """Signal-to-noise ratio of the gradient per update and per token in the loss, and its angle to full-token GRPO's."""
    figure, axes = p.panels("How much of a gradient is signal?", 3, width=3.9, height=3.1)
    labels = {
        "snr_update": "signal / noise of an update (log scale)",
        "snr_per_1000_tokens": "the same per 1000 tokens in the loss (log scale)",
        "cosine_with_grpo": "cosine to GRPO's expected gradient",
    }
    for axis, (name, label) in zip(axes[0], labels.items(), strict=True):
        _interval_dots(axis, table, name)
        if name == "cosine_with_grpo":
            axis.set_xlim(min(0.0, axis.get_xlim()[0]), 1.05)
        else:
            ends = table[[f"{name}_low", name, f"{name}_high"]].to_numpy(dtype=float)
            p.log_axis(axis, [10.0**power for power in range(-6, 9)])
            axis.set_xlim(ends[ends > 0].min() / 1.6, ends[ends > 0].max() * 1.6)
        axis.set_xlabel(label)
        p.rows_axis(axis, list(table["rule"]) if axis is axes[0, 0] else [""] * len(table))
    text = (
        f"{_sample(table, profile)} Signal: squared length of the mean gradient of an update; noise: its mean squared deviation "
        "when completions and kept tokens are drawn again for the same problems. Bars: 95 % bootstrap over problems. A cosine "
        "under 1 is bias against full-token GRPO, and may be a better direction."
    )
    return p.caption(figure, text)


def say_noise(table: pd.DataFrame) -> list[str]:
    """The most and the least signal of an update; then what differs from GRPO's direction."""
    best, worst = (table.loc[table["snr_update"].agg(end)] for end in ("idxmax", "idxmin"))
    rows = {row["method"]: row for row in table[table["selector"].isin(_METHOD_OF)].to_dict("records")}
    update = [f"{METHOD_LABELS[name]} {_with_ends(row, 'snr_update')}" for name, row in rows.items()]
    cosine = [f"{METHOD_LABELS[name]} {_with_ends(row, 'cosine_with_grpo')}" for name, row in rows.items() if name != "grpo"]
    return [
        f"The signal-to-noise ratio of an update is {listing(update)}; of all rules it is highest for {best['rule']} "
        f"({number(best['snr_update'])}) and lowest for {worst['rule']} ({number(worst['snr_update'])}).",
        f"The cosine to GRPO's expected gradient is {listing(cosine)}: under 1 is bias, which more samples do not average out.",
    ]


def _interval_dots(axis: Axes, table: pd.DataFrame, name: str) -> None:
    for place, row in enumerate(table.to_dict("records")):
        colour, marker = p.SELECTOR_COLOURS.get(row["selector"], "#555555"), p.SELECTOR_MARKERS.get(row["selector"], "X")
        axis.plot([row[f"{name}_low"], row[f"{name}_high"]], [place] * 2, color=colour, linewidth=2)
        axis.plot(row[name], place, marker, color=colour, markersize=7)


def _with_ends(row: dict, name: str, unit: str = "") -> str:
    return interval(row[name], row[f"{name}_low"], row[f"{name}_high"], unit)


def _sample(table: pd.DataFrame, profile: str) -> str:
    first = table.iloc[0]
    groups = f"{first['problems']:.0f} {SETTING_LABELS[first['setting']]}, {first['redraws']:.0f} groups of each"
    return f"{p.about(profile)} The untrained base on {groups}."


# One group, token by token -----------------------------------------------------------------------------------------------------


def _example(tables: Tables, profile: str) -> pd.DataFrame:
    """worked_example.csv of a profile, the right completion first."""
    rows = tables.get("worked_example", pd.DataFrame(columns=["profile", "correct", "completion", "position"]))
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
                row[p.SELECTOR_LABELS.get(selector, selector)] = 100 * here / total if total > 0 else 0.0
            rows.append(row)
    return pd.DataFrame(rows)


def draw_example(tables: Tables, profile: str, table: pd.DataFrame) -> Figure:
    """One right and one wrong completion of a group, token by token, with the credit that each rule gives."""
    rows = _example(tables, profile)
    longest, shown = int(rows["position"].max()) + 1, rows["completion"].unique()
    figure, axes = p.panels("One group, token by token", 1, rows=len(shown), width=max(0.42 * longest + 1.6, 8.0), height=2.7)
    for axis, completion in zip(axes[:, 0], shown, strict=True):
        own = rows[rows["completion"] == completion]
        _tokens(axis, own, longest)
        axis.set_title("right completion" if own["correct"].iloc[0] else "wrong completion", loc="left", pad=24)
    first = rows.iloc[0]
    text = (
        f"{str(first['prompt']).splitlines()[0]} ({int(first['right_in_group'])} of {int(first['group_size'])} completions right.) "
        "Blue: made more likely, orange: less; the deeper, the larger the share of this completion's credit on that token "
        "(square-root scale). Dot: not in the loss. Framed: decisive tokens. First row: what a token changed in the chance to be "
        f"right. {p.about(profile)}"
    )
    return p.caption(figure, text)


def _tokens(axis: Axes, rows: pd.DataFrame, longest: int) -> None:
    tokens = rows.drop_duplicates("position")
    names, lines = ["what it changed"], [(tokens["position"], tokens["worth"].fillna(0.0), 1.0)]
    for selector, own in rows.groupby("selector", sort=False):
        names.append(p.SELECTOR_LABELS.get(selector, selector))
        lines.append((own["position"], own["credit"], own["credit"].abs().sum() or 1.0))
    for row, (positions, values, whole) in enumerate(lines):
        for position, value in zip(positions, values, strict=True):
            if np.isnan(value):
                axis.text(position, row, "·", ha="center", va="center", color="#999999", fontsize=8)
                continue
            depth = min(1.0, float(np.sqrt(abs(value) / whole)))
            if depth > 0.02:
                colour = POSITIVE if value > 0 else NEGATIVE
                axis.add_patch(Rectangle((position - 0.46, row - 0.43), 0.92, 0.86, facecolor=colour, alpha=depth, lw=0))
    for position, token, decisive in tokens[["position", "token", "decisive"]].itertuples(index=False):
        word = "END" if str(token).startswith("<|") else str(token).strip() or "\u2423"
        axis.text(position, -0.75, word, ha="center", va="bottom", fontsize=8, fontweight="bold" if decisive else "normal")
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
        labels = {METHOD_LABELS[name]: p.SELECTOR_LABELS[rule] for rule, name in _METHOD_OF.items()}
        parts = [f"{name} gives it {percent(row[label])}" for name, label in labels.items() if label in row]
        said.append(
            f"In the {row['answer']} completion the token {row['token']!r} changed the chance to be right most, by "
            f"{points(row['worth'])}; of the completion's credit {listing(parts)}."
        )
    return said[:2]
