"""What the reader sees on stderr: our lines, and of the libraries only what can be acted on."""

from __future__ import annotations

import warnings

import huggingface_hub.utils
import pytest
from tiny_runs import tiny_config

from replication.models import load_policy


@pytest.mark.parametrize("kind", ["grpo", "base", "full"])
def test_loading_a_model_prints_nothing_and_leaves_other_warnings_alone(random_base, capfd, kind):
    """A bar over the weights and a FutureWarning that PEFT earns from transformers once stood in red in every notebook."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_policy(tiny_config(random_base, kind))
        warnings.warn("one of your settings is odd", UserWarning, stacklevel=1)
        warnings.warn("one of our names will change", FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["one of your settings is odd", "one of our names will change"]
    assert capfd.readouterr().err == ""
    assert not huggingface_hub.utils.are_progress_bars_disabled(), "a download of gigabytes must show that it goes on"
