"""Probe the Hugging Face hub and its local cache in a bounded time.

The hub's libraries retry for half a minute, and wait forever for a server that accepts a connection
and never answers.
"""

from __future__ import annotations

import threading

PROBE_S = 4.5
_REQUEST_TIMEOUT_S = 4.0


def why_unreachable(path: str) -> str:
    """Return why the hub can't be used, or "" if it answers, within five seconds.

    Args:
        path: small file on the hub to request.
    """
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return "offline mode is on (HF_HUB_OFFLINE)"
    endpoint = constants.ENDPOINT
    outcome = [f"{endpoint} did not answer within {PROBE_S:g} s"]

    def ask() -> None:
        try:
            # The library's session uses the same proxies and certificates as the later download.
            answer = get_session().head(f"{endpoint}/{path}", timeout=_REQUEST_TIMEOUT_S)
            status = answer.status_code
            # Proxies and gateways answer 5xx and 407; any other answer comes from the hub.
            is_proxy = status >= 500 or status == 407
            outcome[0] = f"{endpoint} answered with status {status}" if is_proxy else ""
        except Exception as error:  # noqa: BLE001 - whatever happened, the hub is unusable
            outcome[0] = f"{endpoint} can't be reached ({error or type(error).__name__})"

    # A DNS server that doesn't answer blocks for longer than any request timeout, so a thread
    # bounds the wait.
    probe = threading.Thread(target=ask, name="hub-probe", daemon=True)
    probe.start()
    probe.join(PROBE_S)
    return outcome[0]


def is_cached(name: str, file: str, revision: str | None) -> bool:
    """Return True if a model's file is in the local cache; False for invalid names, too."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)
    except (HFValidationError, ValueError):
        return False
