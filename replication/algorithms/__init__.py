"""The methods: pure functions from a group of completions and their rewards to the credit of single tokens.

No model, no tokenizer, no config and no I/O below this package. Symbols of the formulas and their names in the code:

==========  =======================  =====================================================================
symbol      name                     meaning
==========  =======================  =====================================================================
x           prompt                   token ids of one problem
G           group size               number of completions sampled for one prompt
y(i)        completions[i]           generated tokens of completion i, EOS included, no padding
R_i         rewards[i]               1.0 for a right final answer, 0.0 otherwise (any finite number works)
A_i         advantage                what a token is credited with
t           position                 0 for the first generated token
T_i         kept positions           the tokens of completion i that enter the loss
alpha       cutoff                   positions below it always enter the loss (S-GRPO)
P           keep_probability         chance of a later token to enter (S-GRPO)
k           max_kept_tokens          most tokens kept of one completion (S-GRPO)
p, v        prefix, next token       a transition of the prefix trie (T-SPMO)
V(i, t)     values[i][t]             what the critic expects of the prompt and the tokens before t (PPO)
==========  =======================  =====================================================================
"""

from __future__ import annotations

from replication.algorithms.controls import SELECTORS, BranchGRPO, SelectedGRPO
from replication.algorithms.credit import TokenCredit, every_token
from replication.algorithms.grpo import GRPO
from replication.algorithms.ppo import PPO
from replication.algorithms.s_grpo import SGRPO
from replication.algorithms.t_spmo import TSPMO
from replication.algorithms.trie import Trie, build_trie

__all__ = [
    "GRPO",
    "PPO",
    "SELECTORS",
    "SGRPO",
    "TSPMO",
    "BranchGRPO",
    "SelectedGRPO",
    "TokenCredit",
    "Trie",
    "build_trie",
    "every_token",
]
