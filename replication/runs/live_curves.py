"""TensorBoard event files beside metrics.jsonl, while a run is going on (extra ``tensorboard``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from replication.errors import UserError


def live_curves(folder: Path) -> Callable[[Mapping[str, Any]], None]:
    """A function that writes each number of a line of metrics.jsonl as a scalar, under its name and at its step.

    TensorBoard joins the files of several starts of a run; what an earlier one wrote of later steps is no longer shown.

    Raises:
        UserError: the package is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("tensorboard=true needs the package tensorboard: pip install '.[tensorboard]'") from None
    writer = None

    def write(row: Mapping[str, Any]) -> None:
        nonlocal writer
        writer = writer or SummaryWriter(str(folder), purge_step=row["step"])
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                writer.add_scalar(name, value, row["step"])
        writer.flush()

    return write
