"""One run of a sweep: the command that repeats it."""

from __future__ import annotations

import shlex

import pytest

from training.command import parse_arguments
from training.config import FitConfig
from training.trial import fit_command


@pytest.mark.parametrize("init_head", [True, False])
def test_the_command_is_understood_and_states_the_same_options(*, init_head: bool) -> None:
    options = {
        "task": "rte",
        "freeze": "bitfit:query,intermediate",
        "init_from": "a folder/mnli.safetensors",
        "init_head": init_head,
        "lr": 0.002,
        "seed": 3,
    }
    program, *words = shlex.split(fit_command(options))[1:]
    assert program == "-m"
    assert parse_arguments(words[1:]) == FitConfig.model_validate(options)
