"""How the report writes numbers and names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from replication.names import ABLATION_LABELS, METHOD_LABELS, SETTING_LABELS, TASK_LABELS
from replication.statistics import Tables, table

_NAMES = {"task": TASK_LABELS, "setting": SETTING_LABELS, "ablation": ABLATION_LABELS}
_NAMES |= dict.fromkeys(("method", "a", "b"), METHOD_LABELS)
#: Heads of columns whose name alone does not tell the unit or the meaning.
_HEADS = {
    "accuracy": "test accuracy, %", "sampled_accuracy": "sampled accuracy, %", "validation_accuracy": "validation accuracy, %",
    "held_out_accuracy": "on held-out templates, %", "accuracy_all_items": "on all items, %",
    "accuracy_new_stories": "on new stories, %", "kept_fraction": "tokens in the loss, % of untied groups",
    "kept_share_all": "tokens in the loss, % of all groups", "tokens_in_loss": "tokens in the loss",
    "start": "validation accuracy at the start, %", "two_thirds": "after two thirds of the steps, %", "end": "at the end, %",
    "lowest": "lowest seed, %", "all_seeds": "test accuracy with all seeds of the headline, %",
    "highest": "highest seed, %", "gap": "minus GRPO, points", "worth": "changed the chance by, points",
    "minus_grpo": "minus GRPO, seeds in pairs", "share": "share of tokens, %", "p_holm": "p, Holm",
    "mean": "mean [95 % over test items], %", "seed_sd": "sd over seeds, points",
    "seed_min": "lowest seed, %", "seed_max": "highest seed, %",
    "worst_rate": "at the worst rate tried, %", "used": "headline rate", "chosen": "chosen by validation",
    "edge": "rate is the lowest or highest tried",
    "level": "level of validation accuracy, %", "reached": "seeds that reach it",
    "tokens_in_loss_to_level": "tokens in the loss until the level, median",
    "tokens_through_model_to_level": "tokens through the model until the level, median",
    "tflop_to_level": "TFLOP until the level, median", "seconds_to_level": "seconds until the level, median",
    "times_grpo": "tokens through the model until the level, ÷ GRPO's (geometric mean)",
    "tokens_in_loss_%_of_grpo": "tokens in the loss of a whole training, % of GRPO's",
    "tokens_through_model_%_of_grpo": "tokens through the model of a whole training, % of GRPO's",
    "value": "mean over seeds (accuracy: %, others: nats a token)", "kl_over_grpo": "KL ÷ GRPO's, seeds in pairs",
    "seeds_are": "screening or new seeds", "cell": "prompts a step × completions a prompt, advantage, training items",
    "forgiving": "rates about as good, highest / lowest", "denominator": "denominator of the loss",
    "tokens": "choice of tokens", "reference": "compared with", "equal_within": "equal within, points",
    "design_effect": "design effect of templates", "rank": "LoRA rank (0: full fine-tuning)",
    "lora_rank": "LoRA rank", "ranks": "LoRA ranks",
    "train_items": "training items", "epochs": "times each training item was seen", "trained_items": "trained items evaluated",
    "ahead": "trained items ahead of test items, points", "train_accuracy": "on trained items, %",
    "held_out_items": "held-out items",
    "kl_to_base": "KL to the base, nats a token (geometric mean)", "difference": "difference, points",
    "gain": "gain over the base, points", "gain_of_form": "of it: more parsable answers, points",
    "gain_of_correctness": "of it: more right answers among them, points",
    "parsable_before": "parsable answers of the base, %", "parsable_after": "parsable answers after training, %",
    "rise_in_last_third": "rise in the last third, points",
    "without": "without, %", "with": "with replays, %", "tokens_with_over_without": "tokens generated, with ÷ without",
    "peak_low": "choices of single seeds, lowest", "peak_high": "choices of single seeds, highest",
    "redraws": "groups of each problem", "gradient_decisive": "decisive tokens, % of the gradient",
    "credit_decisive": "decisive tokens, % of the credit", "tokens_decisive": "decisive tokens, % of all",
    "distinct_transitions_in_loss": "distinct transitions in the loss, %",
    "snr_update": "signal / noise of an update", "snr_per_1000_tokens": "signal / noise per 1000 tokens in the loss",
    "cosine_with_grpo": "cosine to GRPO's expected gradient",
}  # fmt: skip
#: Columns that drawing and sentences need and a reader does not.
_HIDDEN = ("schema_version", "selector", "column", "better")


#: What replaces the words about right answers under a reward of one's own, the longest first.
_REWARD_WORDS = {"test accuracy": "mean test reward", "validation accuracy": "mean validation reward", "accuracy": "mean reward"}
_ACCURACY = re.compile("(mean )?(" + "|".join(_REWARD_WORDS) + ")", re.IGNORECASE)


def own_reward(tables: Tables, profile: str) -> bool:
    """Whether the runs of a profile were trained and judged by a reward of the reader's own."""
    runs = table(tables, "runs")
    return bool(runs.loc[runs["profile"] == profile, "reward"].notna().any())


def in_rewards(text: str) -> str:
    """A text about accuracy as one about a reward of one's own: "Mean test accuracy" becomes "Mean test reward"."""

    def words(found: re.Match[str]) -> str:
        said = _REWARD_WORDS[found[2].lower()]
        return said[0].upper() + said[1:] if found[0][0].isupper() else said

    return _ACCURACY.sub(words, text)


def number(value: float, largest: float | None = None) -> str:
    """Few digits: 12,346, 85.1, 0.0061; empty for NaN.

    Args:
        largest: the number whose size decides how many decimals there are, where several stand side by side; default ``value``.
    """
    if pd.isna(value):
        return ""
    size = abs(value if largest is None else largest)
    if size < 1e-4 or (size < 1 and largest is None):
        return f"{value:z.2g}"
    return f"{value:z,.{0 if size >= 1000 else 1 if size >= 1 else 1 - math.floor(math.log10(size))}f}"


def points(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{value:+z.1f} points"


def percent(value: float) -> str:
    """A share that is already in percent."""
    return f"{number(value)} %"


def interval(value: float, low: float, high: float, unit: str = "") -> str:
    """A number with its 95 % interval; without one where there is none, empty where the number itself is not defined."""
    if pd.isna(value) or pd.isna(low) or pd.isna(high):
        return number(value) + unit if pd.notna(value) else ""
    largest = max(abs(value), abs(low), abs(high))
    return f"{number(value, largest)}{unit} [{number(low, largest)}, {number(high, largest)}]"


def p_text(p: float, at_floor: bool) -> str:
    """A p-value for a reader: "≤ 0.0005" where no resample was on the other side (``at_floor``), else two digits; empty for NaN."""
    return "" if math.isnan(p) else f"{'≤ ' * at_floor}{p:.2g}"


def all_seeds(table: pd.DataFrame) -> str:
    """Beside points of few seeds, what all seeds of the headline say of the same configs: the column ``all_seeds``."""
    known = table[table["all_seeds"].notna()]
    parts = [f"{METHOD_LABELS[row.method]} {percent(row.accuracy)} ({percent(row.all_seeds)})" for row in known.itertuples()]
    return f" Few seeds can mislead. In brackets, the same config with all its headline seeds: {listing(parts)}." if parts else ""


def counted(count: float, word: str) -> str:
    """ "1 seed", "10 seeds"."""
    return f"{int(count):,} {word}{'' if count == 1 else 's'}"


def counted_span(counts: Iterable[float], word: str) -> str:
    """ "10 seeds", "3 to 5 seeds"."""
    low, high = min(counts), max(counts)
    return counted(high, word) if low == high else f"{int(low):,} to {counted(high, word)}"


def span(values: Iterable[float]) -> str:
    """ "3.2 to 8.6", or the one number that all of them are."""
    values = sorted(values)
    texts = [number(value, max(values, key=abs)) for value in values]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def listing(parts: Sequence[str]) -> str:
    """Parts in a row, the last after "and"; empty without parts."""
    return ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + "".join(parts[-1:])


def distinct(values: pd.Series) -> str:
    """The different numbers of a column, in rising order: "0.001, 0.003"."""
    return ", ".join(f"{value:g}" for value in sorted(set(pd.to_numeric(values, errors="coerce").dropna())))


def shown_table(frame: pd.DataFrame, rewards: bool = False) -> dict[str, Any]:
    """A frame of numbers as the heads and cells of a page; with ``rewards`` its heads speak of mean rewards.

    ``x``, ``x_low`` and ``x_high`` become one cell with its interval, ids become names, and columns in which nothing was measured
    are left out. A cell of type Markup is shown as the HTML it is.

    Returns:
        heads: (text, kind) of each column, kind "number", "nowrap" or "words"; rows: the cells as texts.
    """
    frame = (frame.dropna(axis="columns", how="all") if len(frame) else frame).rename(columns=str)
    ends = {f"{name}_{end}" for name in frame for end in ("low", "high")}
    heads, columns = [], []
    for name in [name for name in frame if name not in ends and name not in _HIDDEN]:
        values = frame[name].tolist()
        if pd.api.types.is_numeric_dtype(frame[name]) and frame[name].dtype != bool:
            kind, texts = "number", _numbers(values)
            if {f"{name}_low", f"{name}_high"} <= ends & set(frame):
                bounds = zip(values, frame[f"{name}_low"], frame[f"{name}_high"], strict=True)
                texts = [interval(*bound) for bound in bounds]
        else:
            texts = [_text(value, name) for value in values]
            longest = max((len(Markup(text).striptags() if isinstance(text, Markup) else text) for text in texts), default=0)
            kind = "words" if longest > 40 else "nowrap"
        head = _HEADS.get(name, name.replace("_", " "))
        heads.append((in_rewards(head) if rewards else head, kind))
        columns.append(texts)
    return {"heads": heads, "rows": list(zip(*columns, strict=True))}


def _numbers(values: Sequence[float]) -> list[str]:
    """Whole numbers without a point where the whole column is whole."""
    known = [value for value in values if not pd.isna(value)]
    if all(float(value).is_integer() for value in known):
        return ["" if pd.isna(value) else f"{int(value):,}" for value in values]
    return [number(value) for value in values]


def _text(value: Any, column: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Markup):
        return value
    return "" if value is None or value is pd.NA else _NAMES.get(column, {}).get(str(value), str(value))
