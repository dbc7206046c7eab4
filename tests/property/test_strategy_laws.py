"""Laws of rules that select by score, for any gradients and weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.laws import law
from training.run.prepare import gradient_to_weight
from training.strategies.grammar import count, select

pytestmark = pytest.mark.law

LAW = law(60)

# Float32 as gradients and weights are: exact zeros and tiny values are frequent.
numbers = st.one_of(
    st.just(0.0),
    st.floats(-(2.0**-40), 2.0**-40, width=32, allow_subnormal=False),
    st.floats(-64.0, 64.0, width=32, allow_subnormal=False),
)
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=60)
shares = st.floats(0.01, 1.0)


def columns(drawn: list[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    gradient, weight = torch.tensor(drawn, dtype=torch.float32).unbind(1)
    return gradient, weight


def chosen_by(rule: str, scores: Tensor, share: float) -> Tensor:
    """The mask of a selection from one vector."""
    shapes = {"a.bias": tuple(scores.shape)}
    selection = select(f"{rule}:{share:g}", shapes, 0, scores=lambda _: {"a.bias": scores})
    assert count(selection, shapes) == max(1, round(float(f"{share:g}") * len(scores)))
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[selection["a.bias"]] = True
    return mask


@LAW
@given(pairs)
def test_a_ratio_is_a_number_and_zero_only_without_a_gradient(
    drawn: list[tuple[float, float]],
) -> None:
    gradient, weight = columns(drawn)
    ratio = gradient_to_weight(gradient, weight)
    assert torch.isfinite(ratio).all()
    assert (ratio >= 0).all()
    assert (ratio[gradient == 0] == 0).all()
    assert (ratio[gradient.abs() > 1e-30] > 0).all()


@LAW
@given(pairs, st.integers(-8, 8))
def test_signs_do_not_count_and_a_larger_gradient_does(
    drawn: list[tuple[float, float]], power: int
) -> None:
    """Gradients in other units, as of a loss that is a sum or a mean, rank values alike."""
    gradient, weight = columns(drawn)
    ratio = gradient_to_weight(gradient, weight)
    assert torch.equal(ratio, gradient_to_weight(-gradient, weight))
    assert torch.equal(ratio, gradient_to_weight(gradient, -weight))
    assert (gradient_to_weight(2 * gradient, weight) >= ratio).all()
    assert (gradient_to_weight(gradient, 2 * weight) <= ratio).all()
    scaled = gradient_to_weight(gradient * 2.0**power, weight)
    normal = ratio > 1e-20  # below, float32 loses digits
    assert torch.equal(scaled[normal], ratio[normal] * 2.0**power)


@LAW
@given(pairs, shares, st.sampled_from(["fisher", "gem"]))
def test_no_value_left_out_scores_more_than_a_chosen_one(
    drawn: list[tuple[float, float]], share: float, rule: str
) -> None:
    gradient, weight = columns(drawn)
    scores = gradient.square() if rule == "fisher" else gradient_to_weight(gradient, weight)
    chosen = chosen_by(rule, scores, share)
    if not chosen.all():
        assert scores[chosen].min() >= scores[~chosen].max()


@LAW
@given(pairs, shares)
def test_weights_that_are_zero_come_first_by_their_gradients(
    drawn: list[tuple[float, float]], share: float
) -> None:
    gradient, _ = columns(drawn)
    zeros = torch.zeros_like(gradient)
    by_ratio = chosen_by("gem", gradient_to_weight(gradient, zeros), share)
    limit = gradient.abs()[by_ratio].min()
    assert (gradient.abs()[~by_ratio] <= limit * (1 + 1e-6)).all()
    one = torch.cat([gradient.abs().clamp(min=1e-3), torch.tensor([1.0])])
    weights = torch.cat([torch.ones_like(gradient), torch.zeros(1)])
    assert chosen_by("gem", gradient_to_weight(one, weights), 1 / (2 * len(one)))[-1]
