"""Settings of property tests: how many examples a law is tried on, in each of two profiles.

`fast` is the default. `pytest --hypothesis-profile thorough` tries ten times as many examples;
`make test-slow` does so.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

THOROUGH = 10  # times as many examples

# Machines that run tests are busy: how long an example takes says nothing about the code.
settings.register_profile("fast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("fast"), max_examples=100 * THOROUGH)


def law(num_examples: int) -> settings:
    """Return a decorator for a property test, with the examples that it has in the fast profile."""
    is_thorough = settings.get_current_profile_name() == "thorough"
    return settings(max_examples=num_examples * (THOROUGH if is_thorough else 1))
