"""Settings of property tests: how many examples a law is tried on, in each of two profiles.

`fast` is the default. `pytest --hypothesis-profile thorough` tries five times as many examples;
`make test-slow` does so for the files with the marker `law`.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

FAST, THOROUGH = "fast", "thorough"  # names of the profiles
FACTOR = 5  # times as many examples in the thorough profile

# Machines that run tests are busy: how long an example takes says nothing about the code.
settings.register_profile(FAST, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(THOROUGH, settings.get_profile(FAST), max_examples=100 * FACTOR)


def law(num_examples: int) -> settings:
    """Return a decorator for a property test, with the examples that it has in the fast profile."""
    is_thorough = settings.get_current_profile_name() == THOROUGH
    return settings(max_examples=num_examples * (FACTOR if is_thorough else 1))
