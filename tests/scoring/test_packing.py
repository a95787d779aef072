"""Packing: one row for what is shared, a mask that is the definition of "ancestor", short rows joined instead of padded."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import QUICK
from tiny import credit_at

from replication.scoring.packing import additive_mask, batch_rows, pack_groups

_tokens = st.lists(st.integers(4, 6), min_size=1, max_size=6)


def everything(group: list[list[int]]):
    return credit_at([(i, t) for i, tokens in enumerate(group) for t in range(len(tokens))])


def test_a_group_of_equal_completions_is_one_row():
    """Sixteen copies hold more tokens than a row has room for, but no more nodes than one: they were split into 16 rows."""
    group = [list(range(4, 34))] * 16
    (row,) = pack_groups([[1, 2, 3]], [group], [everything(group)], 4096, width=8)
    assert len(row) == 3 + 29


def test_a_split_repeats_no_more_than_one_path_for_each_part():
    """Copies of two branches, too many nodes for one row: two rows, and copies never open a further one."""
    group = [[4] * 100, [5] * 100] * 8
    rows = pack_groups([[1]], [group], [everything(group)], 4096, width=8)
    assert sorted(map(len, rows)) == [100, 100]


@QUICK
@given(groups=st.lists(st.tuples(_tokens, st.lists(_tokens, min_size=1, max_size=5)), min_size=1, max_size=4))
def test_a_token_sees_itself_and_what_comes_before_it_in_its_own_sequence(groups):
    """The mask against walks along the parents, in rows that hold several groups; each walk spells a prefix of some sequence."""
    prompts, completions = [prompt for prompt, _ in groups], [group for _, group in groups]
    rows = pack_groups(prompts, completions, [everything(group) for group in completions], 4096)
    batches = batch_rows(rows, max_batch_tokens=60)
    assert sum(len(row) for batch in batches for row in batch) == sum(map(len, rows))
    sequences = [[*prompt, *tokens] for prompt, group in groups for tokens in group]
    credited = []
    for row in (row for batch in batches for row in batch):
        mask = (additive_mask([row], torch.device("cpu"), torch.float32)[0, 0] == 0).numpy()
        for place in range(len(row)):
            walk, at = [], place
            while at >= 0:
                walk.append(at)
                at = int(row.parent[at])
            assert np.flatnonzero(mask[place]).tolist() == walk[::-1]
            assert row.position[place] == len(walk) - 1
            spelled = row.token[walk[::-1]].tolist()
            assert any(sequence[: len(spelled)] == spelled for sequence in sequences)
        for source, target in zip(row.source, row.target, strict=True):
            spelled = [*row.token[mask[source]].tolist(), int(target)]
            assert any(sequence[: len(spelled)] == spelled for sequence in sequences)
        credited += row.output.tolist()
    assert sorted(credited) == list(range(len(credited)))


def test_short_rows_stand_behind_each_other_where_a_long_one_would_pad_them():
    """One row of 40 and ten of 10: four rows in all, not eleven."""
    prompts = [[4] * 30, *[[5, 6, 7, 8, 4]] * 10]
    completions = [[[9] * 11, [10]], *[[[9] * 6, [10]]] * 10]
    (batch,) = batch_rows(pack_groups(prompts, completions, [everything(group) for group in completions], 4096), 8192)
    assert [len(row) for row in batch] == [40, 40, 40, 20]
