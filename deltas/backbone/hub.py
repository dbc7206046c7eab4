"""Whether the Hugging Face hub answers, found out in a bounded time.

Left alone, the hub's libraries retry for half a minute, or wait for ever for a server that takes a
connection and says nothing.
"""

from __future__ import annotations

import threading

PROBE_S = 4.5
_REQUEST_TIMEOUT_S = 4.0


def why_unreachable(path: str) -> str:
    """What keeps us from the hub, or "" when it answers; within five seconds.

    Args:
        path: of a small file on the hub, which is asked for.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "offline mode is on (HF_HUB_OFFLINE)"
    endpoint = constants.ENDPOINT
    outcome = [f"{endpoint} did not answer within {PROBE_S:g} s"]

    def ask() -> None:
        try:
            outcome[0] = _ask(endpoint, path)
        except Exception as error:  # noqa: BLE001 - end of a thread: whatever it is, no hub
            outcome[0] = f"{endpoint} can't be reached ({error or type(error).__name__})"

    # A name server that doesn't answer blocks for longer than any request timeout, so the wait is
    # bounded out here.
    probe = threading.Thread(target=ask, name="hub-probe", daemon=True)
    probe.start()
    probe.join(PROBE_S)
    return outcome[0]


def is_cached(name: str, file: str, revision: str | None) -> bool:
    """Whether a model's file is in the local cache; False for what can't be a model's name."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)
    except (HFValidationError, ValueError):
        return False


def _ask(endpoint: str, path: str) -> str:
    from huggingface_hub import get_session

    # The hub library's own session: the same proxies and certificates as the download that follows.
    status = get_session().head(f"{endpoint}/{path}", timeout=_REQUEST_TIMEOUT_S).status_code
    # 5xx and 407 come from proxies and gateways on the way; any other answer is the hub's own.
    return f"{endpoint} answered with status {status}" if status >= 500 or status == 407 else ""
