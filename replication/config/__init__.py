"""The config of a run: its fields and its run id, the profiles that fill it in, and how a command line writes it.

In: a profile, a task, a method, a seed and other values of fields. Out: one frozen, checked ``ExperimentConfig``.
Start with ``experiment`` for the fields; ``profiles`` makes a config, ``command_line`` writes and reads values as text.
"""

from __future__ import annotations

from replication.config.command_line import parse_settings, run_command
from replication.config.experiment import FIELDS_OF_A_METHOD, ExperimentConfig
from replication.config.profiles import load_profile, profile_plan

__all__ = ["FIELDS_OF_A_METHOD", "ExperimentConfig", "load_profile", "parse_settings", "profile_plan", "run_command"]
