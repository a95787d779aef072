"""Names and paths that more than one module uses, each written once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

#: The repository around the package. An installed package has none: ``DATA`` and ``RESULTS`` then do not exist.
ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
RESULTS = ROOT / "results"
CLAIMS = DATA / "claims.yaml"
DEVIATIONS = DATA / "deviations.yaml"
NEGATIVE_RESULTS = DATA / "negative_results.yaml"
#: The one model that ships with the repository; any other is a folder or a name on the Hub.
NANO_BASE = DATA / "nano-base"

PROFILES = ("smoke", "nano", "small", "paper")
TASKS = ("word_problems", "multiplication", "svamp", "jsonl")
#: The methods of the comparison, which every ablation trains.
TRAINED = ("grpo", "s_grpo", "t_spmo")
METHODS = ("base", *TRAINED, "ppo")
#: The ablation whose runs the claims are judged by.
HEADLINE = "full_vs_sparse"
ABLATIONS = (HEADLINE, "learning_rate", "token_fraction", "lora_rank", "regimes", "replay")
#: What tells the problems of two runs apart: the task, and for word problems where the noise of the answer stands (``asides``).
SETTINGS = ("word_problems none", "word_problems before", "word_problems after", *TASKS)
#: Learning rates are chosen with seeds from here on, which no headline run uses.
TUNING_SEED = 100
#: Cells of the ablation regimes that a screening picked out are run again with seeds from here on.
NEW_SEED = 200
#: Statuses of a run that has an end result; a collapsed one is done, with an accuracy under a tenth of its base's.
ENDED = ("done", "diverged", "collapsed")
#: Of the CSV tables and of summary.json.
SCHEMA_VERSION = 1


class Labels(dict[str, str]):
    """Labels by name; of a reader's own package.module:name the label is its name."""

    def __missing__(self, name: str) -> str:
        return name.rpartition(":")[2]


#: How tables and sentences write them.
METHOD_LABELS = Labels(base="base", grpo="GRPO", s_grpo="S-GRPO", t_spmo="T-SPMO", ppo="PPO")
TASK_LABELS = Labels(word_problems="word problems", multiplication="multiplication", svamp="SVAMP", jsonl="your problems")
SETTING_LABELS = TASK_LABELS | {
    "word_problems none": "word problems (fixed wording)",
    "word_problems before": "word problems (noise before)",
    "word_problems after": "word problems (noise after)",
}
ABLATION_LABELS = {
    HEADLINE: "full against sparse",
    "token_fraction": "token fraction",
    "lora_rank": "LoRA rank",
    "learning_rate": "learning rate",
    "regimes": "where full-token GRPO fails",
    "replay": "replay",
}


def trained_in(methods: Iterable[str]) -> tuple[str, ...]:
    """The methods of the comparison, and after them PPO and those of a reader's own among ``methods``, by name."""
    return (*TRAINED, *sorted(set(methods) - {"base", *TRAINED}))
