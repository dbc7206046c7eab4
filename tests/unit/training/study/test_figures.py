"""Figures: their axes, and the machine and measure of their times."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.training.study.test_aggregates import run_of
from training.study import figures
from training.study.aggregates import make_cells


@pytest.mark.parametrize(("factor", "scale"), [(2, "linear"), (8, "log")])
def test_the_metric_is_drawn_over_steps(factor: int, scale: str) -> None:
    """Over shares a head, which takes many more steps, would look as fast as others."""
    from matplotlib.figure import Figure

    short, long = run_of("bitfit", 0.5), run_of("head", 0.5)
    assert long.outcome is not None
    steps = (factor, 2 * factor)
    history = long.outcome.history.model_copy(update={"step": steps})
    fields = {"history": history, "steps": steps[-1]}
    long = long.model_copy(update={"outcome": long.outcome.model_copy(update=fields)})
    axis = Figure().subplots()
    figures._histories([axis], make_cells([short, long]), figures._METRIC)
    assert {tuple(np.asarray(line.get_xdata()).tolist()) for line in axis.lines} == {(1, 2), steps}
    assert (axis.get_xscale(), axis.get_xlabel()) == (scale, "optimiser steps")
