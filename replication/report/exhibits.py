"""The one list of exhibits: each a question, a figure, one or two paragraphs, and the table of numbers behind both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text

from replication.report import cost, credit, headline, rate_and_rank, regimes, side_effects, tokens
from replication.report import style as p
from replication.report.html import data_uri, render
from replication.report.wording import in_rewards, own_reward, shown_table
from replication.statistics import Tables, selection_gap_table


@dataclass(frozen=True)
class Shown:
    """An exhibit on some tables; as the last value of a notebook cell it shows itself.

    Attributes:
        table: the numbers behind figure and sentences, a frame without text formatting.
        sentences: one or two paragraphs, computed from ``table``; "Not run." where there is none.
        rewards: the runs had a reward of the reader's own: what is called accuracy elsewhere is a mean reward.
    """

    name: str
    title: str
    question: str
    table: pd.DataFrame
    figure: Figure
    sentences: list[str]
    rewards: bool = False

    @property
    def width(self) -> int:
        """Pixels of the picture on a page: in proportion to the figure's own width, so that all letters are of one size."""
        return round(100 * self.figure.get_figwidth())

    def html(self, source: str, *, unfolded: bool = False) -> str:
        """Title, question, picture, sentences and the table, which a click unfolds.

        Args:
            source: address of the picture.
        """
        return render("exhibit.html", shown=self, source=source, table=shown_table(self.table, self.rewards), unfolded=unfolded)

    def _repr_html_(self) -> str:
        return self.html(data_uri(p.png(self.figure), "image/png"), unfolded=True)


@dataclass(frozen=True)
class Exhibit:
    """What an exhibit asks, and how its table, figure and sentences come about.

    Attributes:
        tabulate: (tables, profile) -> the numbers; empty where nothing was run.
        draw: (tables, profile, numbers) -> the figure; the tables are for the dots of single seeds.
        say: numbers -> one or two paragraphs.
    """

    name: str
    title: str
    question: str
    tabulate: Callable[[Tables, str], pd.DataFrame]
    draw: Callable[[Tables, str, pd.DataFrame], Figure]
    say: Callable[[pd.DataFrame], list[str]]

    def show(self, tables: Tables, profile: str) -> Shown:
        """The exhibit on some tables; runs of other profiles do not count."""
        table = self.tabulate(tables, profile)
        with p.figure_style():
            figure = self.draw(tables, profile, table) if len(table) else p.not_run(self.title, "the tables hold nothing for it")
        said = [self.title, self.question, *(self.say(table) if len(table) else ["Not run."])]
        if rewards := own_reward(tables, profile):
            said = [in_rewards(text) for text in said]
            for text in figure.findobj(Text):
                if (changed := in_rewards(text.get_text())) != text.get_text():
                    text.set_text(changed)
        title, question, *sentences = said
        return Shown(self.name, title, question, table, figure, sentences, rewards)


#: In the order of the report: ``EXHIBITS[name].show(tables, profile)``.
EXHIBITS = {exhibit.name: exhibit for exhibit in (
    Exhibit(
        "full_vs_sparse", "Full against sparse", "Does crediting fewer tokens cost accuracy, or gain it?",
        headline.accuracy_table, headline.draw_accuracy, headline.say_accuracy,
    ),
    Exhibit(
        "learning_curves", "Learning curves", "How fast does each method learn, and has it levelled off?",
        headline.learning_table, headline.draw_learning, headline.say_learning,
    ),
    Exhibit(
        "learning_rate", "Learning rate", "Does a method succeed or fail because of its learning rate?",
        rate_and_rank.rate_table, rate_and_rank.draw_rate, rate_and_rank.say_rate,
    ),
    Exhibit(
        "token_fraction", "Token fraction", "How much does accuracy depend on how many tokens are credited?",
        tokens.fraction_table, tokens.draw_fraction, tokens.say_fraction,
    ),
    Exhibit(
        "which_tokens", "Which tokens", "At the same number of tokens, does it matter which are credited?",
        selection_gap_table, tokens.draw_contrast, tokens.say_contrast,
    ),
    Exhibit(
        "lora_rank", "LoRA rank", "Does the gap between sparse and full depend on the size of the adapter?",
        rate_and_rank.rank_table, rate_and_rank.draw_rank, rate_and_rank.say_rank,
    ),
    Exhibit(
        "regimes", "Regimes", "Where does full-token GRPO fail to improve?",
        regimes.regime_table, regimes.draw_regimes, regimes.say_regimes,
    ),
    Exhibit(
        "overfitting", "Few training items", "What do many steps on few items do to other items?",
        regimes.overfitting_table, regimes.draw_overfitting, regimes.say_overfitting,
    ),
    Exhibit(
        "replay", "Replay", "Do replays help T-SPMO?",
        regimes.replay_table, regimes.draw_replay, regimes.say_replay,
    ),
    Exhibit(
        "regularisation", "Regularisation", "Do sparse updates drift less, and lose less elsewhere?",
        side_effects.effects_table, side_effects.draw_effects, side_effects.say_effects,
    ),
    Exhibit(
        "cost_to_reach", "Cost", "What does a training spend, and what does one given accuracy cost?",
        cost.cost_table, cost.draw_cost, cost.say_cost,
    ),
    Exhibit(
        "credit_vs_truth", "Gradient and credit on decisive tokens", "Do gradient and credit come from the tokens that decide?",
        credit.truth_table, credit.draw_truth, credit.say_truth,
    ),
    Exhibit(
        "worked_example", "One group, token by token", "Which tokens does each method credit?",
        credit.example_table, credit.draw_example, credit.say_example,
    ),
    Exhibit(
        "gradient_snr", "Signal and noise", "How much of a gradient is signal?",
        credit.noise_table, credit.draw_noise, credit.say_noise,
    ),
)}  # fmt: skip


def save_figures(exhibits: Iterable[Shown], folder: str | Path) -> list[Path]:
    """Write each figure once, to ``folder``/<name>.png and .svg; returns the paths."""
    return [path for shown in exhibits for path in p.save_figure(shown.figure, Path(folder) / shown.name)]
