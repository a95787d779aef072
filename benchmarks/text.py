"""Text of the benchmarks, from their tables alone: ratios to TRL, memory, growth, whole runs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from replication.names import METHOD_LABELS, TRAINED

Bench = dict[str, pd.DataFrame]
#: What the scaling grows, in words.
GROWS = {
    "group_size": "group size",
    "prompt_length": "prompt length (tokens)",
    "completion_length": "completion length (tokens)",
    "vocabulary": "vocabulary",
    "width": "width of the model",
}


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that the aims speak about: updates on the same completions, steps with own rollouts."""
    update = (table["phase"] == "update") & (table["work"] == "TRL's completions")
    return table[update | (table["phase"] == "step")]


def summary(tables: Bench, manifest: dict) -> str:
    """The benchmarks in words and small tables, every number from the tables."""
    lines = ["# Benchmarks", ""]
    if "ratios" in tables:
        about = manifest.get("side_by_side", {})
        packages = about.get("packages", {})
        shown = headline(tables["ratios"])
        lines += [
            f"This project against TRL {packages.get('trl')}'s GRPOTrainer, in turns in one run: the same nano base, problems, "
            f"adapter and sampling, 8 prompts x 16 completions, float32, {about.get('cpu')}, torch {packages.get('torch')}. "
            f"Medians of {shown['n'].min()}, quartiles in brackets; the aim in the last column. Times faster: of each repetition's "
            "two turns, so its median is not the quotient of the two columns beside it.",
            "",
            "| threads | method | part | TRL (s) | ours (s) | times faster | aim |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in shown.itertuples():
            part = "update" if row.phase == "update" else "whole step"
            lines.append(
                f"| {row.threads} | {row.method} | {part} | {row.trl_s:.3f} | {row.ours_s:.3f} | {row.ratio:.1f} "
                f"({row.ratio_q1:.1f} to {row.ratio_q3:.1f}) | {row.aim:g}{'' if row.met else ' (missed)'} |"
            )
        lines += ["", *_where_it_goes(tables), *_agreement(about), ""]
    if "memory" in tables:
        lines += [
            f"Peak memory of an update above what is held before it (vocabulary {tables['memory']['vocabulary'][0]:,}, "
            f"width {tables['memory']['width'][0]}, 8 completions of {tables['memory']['completion_length'][0]} tokens), as a "
            "share of TRL's at its best:",
            "",
            "| scored by | method | completions part after | MB, median (range) | processes | share of TRL | aim |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in tables["memory"].itertuples():
            aim = "" if np.isnan(row.aim) else f"{row.aim:g}{'' if row.met in (True, 'True') else ' (missed)'}"
            lines.append(
                f"| {row.implementation.replace('dense', 'plain logits')} | {row.method} | {1 / (1 - row.common**2):.0f} tokens | "
                f"{row.peak_bytes / 1e6:.0f} ({row.peak_bytes_low / 1e6:.0f} to {row.peak_bytes_high / 1e6:.0f}) | {row.n} | "
                f"{row.share_of_trl_at_its_best:.2f} | {aim} |"
            )
        lines.append("")
    if "scaling" in tables:
        lines += [
            "How many times faster than TRL an update is at the two ends of what was measured (scaling.csv). Completions part "
            "after some 5 tokens and no group ties, which leaves packing little to share:",
            "",
            *_growth(tables["scaling"]),
            "",
        ]
    if "dense_vs_packed" in tables:
        lines += [
            "What packing saves a run of the nano profile (dense_vs_packed.csv), in turns:",
            "",
            *whole_runs(tables),
            "",
        ]
    if "in_trl" in tables:
        lines += [*in_trl(tables), ""]
    missing = {name: f"`python -m benchmarks --parts {name}`" for name in ("scaling", "dense_vs_packed") if name not in tables}
    lines += [line for name, command in missing.items() for line in (f"{name}: not run. {command} measures it.", "")]
    if "gpu" in tables:
        lines += [*on_gpu(tables["gpu"]), ""]
    else:
        lines += ["On a GPU: not run. With one at hand: `python -m benchmarks.bench_gpu --out results/bench`.", ""]
    return "\n".join(lines)


def in_trl(tables: Bench) -> list[str]:
    """A row for stock TRL and for each method in TRL's loop: medians over the measured steps, and memory where it was measured."""
    steps = tables["in_trl"].groupby(["implementation", "method"], sort=False)
    middle = steps[["rollout_s", "update_s", "step_s", "tokens_forwarded"]].median()
    memory = tables.get("in_trl_memory", pd.DataFrame(columns=["implementation", "method", "peak_bytes"]))
    peaks = memory.set_index(["implementation", "method"])["peak_bytes"] / 1e6
    lines = [
        "TRL's own training loop, with TRL's trainer and with `TokenCreditTrainer` (in_trl.csv; one thread, medians of "
        f"{steps.size().min()} steps, {100 * tables['in_trl']['tied_groups'].mean():.0f} % tied groups). The peak is the memory of "
        "an update:",
        "",
        "| trainer | method | rollout (s) | update (s) | step (s) | tokens through the model | peak (MB) |",
        "|---|---|---|---|---|---|---|",
    ]
    for (implementation, method), row in middle.iterrows():
        trainer = "GRPOTrainer" if implementation == "trl" else "TokenCreditTrainer"
        peak = f"{peaks[implementation, method]:.0f}" if (implementation, method) in peaks else "not run"
        lines.append(
            f"| {trainer} | {method} | {row.rollout_s:.3f} | {row.update_s:.3f} | {row.step_s:.3f} | "
            f"{row.tokens_forwarded:.0f} | {peak} |"
        )
    return lines


def on_gpu(table: pd.DataFrame) -> list[str]:
    """A row for each rollout and each update; one that ran out of memory has that in place of its seconds."""
    first = table.iloc[0]
    lines = [
        f"On a GPU ({first['device']}, {first['dtype']}, gpu.csv): the shape {first['shape']} with random weights, prompts of "
        f"{first['prompt_length']} tokens, completions of {first['completion_length']}. Median seconds, quartiles in brackets; "
        "peak memory above what is held before.",
        "",
        "| completions | part | scored by | method | seconds | peak (MB) |",
        "|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        done, update = row["status"] == "done", row["part"] == "update"
        seconds = f"{row['seconds']:.3f} ({row['seconds_q1']:.3f} to {row['seconds_q3']:.3f})" if done else row["status"]
        peak = f"{row['peak_bytes'] / 1e6:.0f}" if done and pd.notna(row["peak_bytes"]) else ""
        way, method = (row["way"], row["method"]) if update else ("", "")
        lines.append(f"| {row['group_size']} | {row['part']} | {way} | {method} | {seconds} | {peak} |")
    return lines


def _growth(table: pd.DataFrame) -> list[str]:
    """A row for each thing that grows: its ends, and the ratio to TRL there for each method."""
    lines = [
        "| what grows | from | to | " + " | ".join(METHOD_LABELS[method] for method in TRAINED) + " |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in GROWS.items():
        shown = table[table["grows"] == name]
        if shown.empty:
            continue
        ends = [shown["value"].min(), shown["value"].max()]
        seconds = shown.set_index(["value", "implementation", "method"])["seconds"]
        cells = [
            " to ".join(f"{seconds[end, 'trl', 'grpo'] / seconds[end, 'packed', method]:.1f}" for end in ends)
            for method in TRAINED
        ]
        lines.append(f"| {label} | {ends[0]:,} | {ends[1]:,} | " + " | ".join(cells) + " |")
    return [*lines, "", least_gain(table)]


def least_gain(table: pd.DataFrame) -> str:
    """In words, for each method: the measured case in which packing gains least over TRL, or loses."""
    trl = table[table["implementation"] == "trl"].set_index(["grows", "value"])["seconds"].rename("trl_s")
    ours = table[table["implementation"] == "packed"].join(trl, on=["grows", "value"])
    ours = ours.assign(ratio=ours["trl_s"] / ours["seconds"])
    slower, least = [], []
    for method in TRAINED:
        row = ours[ours["method"] == method].sort_values("ratio").iloc[0]
        case = f"{GROWS[row.grows].removesuffix(' (tokens)')} {row.value:,}"
        if row.ratio < 1:
            slower.append(f"At {case}, {METHOD_LABELS[method]} is slower than TRL ({row.ratio:.1f} times its speed).")
        else:
            least.append(f"{METHOD_LABELS[method]} {row.ratio:.1f} ({case})")
    said = [f"Packing does not always help ({len(trl)} cases measured).", *slower] if slower else []
    others = " of the others" * bool(slower)
    said += [f"Lowest speeds{others}, as a multiple of TRL's: {', '.join(least)}."] if least else []
    return " ".join(said)


def whole_runs(tables: Bench) -> list[str]:
    """A row for each method: seconds of a step, of training and of a whole run, dense and packed; medians of the repetitions."""
    table = tables["dense_vs_packed"]
    middle = table.groupby(["method", "scoring"])[["score_s", "train_s", "evaluation_s", "run_s"]].median()
    steps = table["default_steps"].iloc[0]
    lines = [
        f"| dense → packed | scoring and backward, a step (s) | training, {steps} steps (s) | whole run (s) | times faster | "
        "training, % of the packed run | n |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in TRAINED:
        if not {(method, "dense"), (method, "packed")} <= set(middle.index):
            continue
        dense, packed = middle.loc[method, "dense"], middle.loc[method, "packed"]
        mine = table[table["method"] == method]
        times, share = dense.run_s / packed.run_s, 100 * packed.train_s / packed.run_s
        lines.append(
            f"| {METHOD_LABELS[method]} | {dense.score_s:.2f} → {packed.score_s:.2f} | "
            f"{dense.train_s:.0f} → {packed.train_s:.0f} | {dense.run_s:.0f} → {packed.run_s:.0f} | "
            f"{times:.1f} | {share:.0f} | {mine.groupby('scoring').size().min()} |"
        )
    return lines


def _where_it_goes(tables: Bench) -> list[str]:
    if "side_by_side" not in tables:
        return []
    table = tables["side_by_side"]
    one = table[table["threads"] == table["threads"].min()]
    lines = []
    for method in TRAINED:
        mine = one[(one["implementation"] == "packed") & (one["method"] == method)]
        own = mine[mine["work"] == "own rollout"].groupby("phase")["seconds"].median()
        same = mine[(mine["work"] == "TRL's completions") & (mine["phase"] == "update")]
        theirs = one[(one["implementation"] == "trl") & (one["phase"] == "update")]
        lines.append(
            f"- {METHOD_LABELS[method]}: {same['tokens_forwarded'].median():.0f} tokens through the model in an update (TRL: "
            f"{theirs['tokens_forwarded'].median():.0f}), {same['tokens_in_loss'].median():.0f} in the loss; "
            f"of a whole step of {own['step']:.3f} s the rollout is {100 * own['rollout'] / own['step']:.0f} %. "
            "The training loop's diagnostics "
            f"come on top: {own['diagnostics']:.3f} s."
        )
    ties = one[(one["implementation"] == "trl")]["tied_groups"].mean()
    lines.append(
        f"- {100 * ties:.0f} % of the groups tie; they cost TRL an update and this project nothing. "
        "With rewards under which none ties: "
        + ", ".join(
            f"{METHOD_LABELS[row.method]} {row.ratio:.1f} times" for row in tables["ratios"].itertuples()
            if row.work.endswith("no ties") and row.threads == one["threads"].min()
        ) + " faster."
    )  # fmt: skip
    return lines


def _agreement(about: dict) -> list[str]:
    found = about.get("differences", {})
    if not found:
        return []
    worst = {name: max(facts[name] for facts in found.values()) for name in ("loss", "gradient")}
    return [
        f"- Same mathematics: on one batch the two losses differ by {worst['loss']:.1e}, "
        f"the gradients by {worst['gradient']:.1e} of their norm."
    ]
