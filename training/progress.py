"""The progress bar of a run: loss, best metric so far, time left; on standard error."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from training.loop import Progress, Report


@contextmanager
def progress_bar(
    steps: int, title: str, metric: str, instead: Report | None = None
) -> Iterator[Report]:
    """Show a bar while the block runs; the block reports each step to what it gets.

    With `instead` no bar is shown, and it gets the reports.
    """
    if instead is not None:
        yield instead
        return
    smooth, best = math.nan, math.nan
    with tqdm(total=steps, desc=title, unit="step", file=sys.stderr, mininterval=0.5) as bar:

        def report(progress: Progress) -> None:
            nonlocal smooth, best
            smooth = progress.loss if math.isnan(smooth) else 0.95 * smooth + 0.05 * progress.loss
            if progress.metric is not None:
                best = progress.metric if math.isnan(best) else max(best, progress.metric)
            if progress.step > bar.n + 1:  # resumed: time left counts from where the run goes on
                bar.initial = bar.n = progress.step - 1
            shown = {"loss": f"{smooth:.3f}"}
            if not math.isnan(best):
                shown[metric] = f"{best:.3f}"
            bar.set_postfix(shown, refresh=False)
            bar.update()

        yield report
