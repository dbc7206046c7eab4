"""Watches the folders of deltas, and has changed files read again.

The system reports each change, so an idle server reads nothing. The library `watchfiles` is loaded
only if this is switched on. Read `app.engine.changes` next. Tested by tests/http/test_watch.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from deltas.format import SUFFIX
from deltas.store.traffic import TRAFFIC_SUFFIX

logger = logging.getLogger(__name__)

_WAIT_MS = 400  # changes that follow each other sooner than this are read together
_AGAIN_S = 5.0  # after a failure, such as a folder that was removed


async def watch(
    folders: Sequence[Path], changed: Callable[[list[Path] | None], Awaitable[object]]
) -> None:
    """Call a function with the delta files that have changed below folders, until cancelled.

    Args:
        folders: folders to watch.
        changed: called with the files, which may have gone; with None if whole folders came or
            went, whose files are not known.
    """
    from watchfiles import awatch

    # Events have absolute paths; the store knows its files by the folders as they were given.
    roots = {folder.absolute(): folder for folder in folders}

    def matters(_change: object, name: str) -> bool:
        path = _below(name, roots)
        if path is None or any(part.startswith(".") for part in path.parts):
            return False
        # Deltas, rules, and folders, which may have gone; not the other files beside deltas.
        is_ours = name.endswith((SUFFIX, TRAFFIC_SUFFIX))
        return is_ours or not os.path.isfile(name)  # noqa: PTH113 - never raises

    while True:
        try:
            async for events in awatch(*roots, watch_filter=matters, debounce=_WAIT_MS):
                names = sorted({name for _, name in events if not name.endswith(TRAFFIC_SUFFIX)})
                paths = [root / path for name in names for root, path in _known(name, roots)]
                is_known = all(name.endswith(SUFFIX) for name in names)
                await changed(paths if is_known else None)
        except Exception as error:  # noqa: BLE001 - the server goes on without news
            logger.warning("the folders of the deltas can't be watched: %s", error)
        await asyncio.sleep(_AGAIN_S)
        await _try(changed)


async def _try(changed: Callable[[list[Path] | None], Awaitable[object]]) -> None:
    """Read everything again, because changes may have been missed."""
    try:
        await changed(None)
    except Exception as error:  # noqa: BLE001 - the next attempt may succeed
        logger.warning("the folders of the deltas can't be read: %s", error)


def _known(name: str, roots: Mapping[Path, Path]) -> list[tuple[Path, Path]]:
    """Return the given root and the path below it of a file; none if it lies elsewhere."""
    path = Path(name)
    found = [root for root in roots if path.is_relative_to(root)]
    return [(roots[root], path.relative_to(root)) for root in found[:1]]


def _below(name: str, roots: Mapping[Path, Path]) -> Path | None:
    """Return the path of a file below its root."""
    return next((path for _, path in _known(name, roots)), None)
