"""Names the files of a store and finds them: the default file of a delta, and its kept versions.

A delta lies at `<root>/<backbone>/<task>/<strategy>.safetensors`. Beside this default file,
`<strategy>@<version>.safetensors` keeps one version each, so that another one can become the
default again. Any other name below a root is a delta, too, but nothing here would write it. Tested
by tests/unit/deltas/store/test_versions.py and tests/property/test_name_laws.py.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from deltas.errors import DeltaNotFoundError
from deltas.format import SUFFIX
from deltas.manifest import NAME_PATTERN, STRATEGY_PATTERN

_VERSION = r"[0-9a-f]{16}"
_KEPT = re.compile(rf"(?P<stem>.+)@(?P<version>{_VERSION})")


def zoo_path() -> Path:
    """Return the folder of the deltas that are shipped with the project; read-only by rule."""
    return Path(str(files("deltas"))) / "zoo"


def delta_path(root: Path, backbone_id: str, task: str, strategy: str) -> Path:
    """Return <root>/<backbone>/<task>/<strategy>.safetensors, with names made safe."""
    return root / _file_name(backbone_id) / task / f"{_strategy_file(strategy)}{SUFFIX}"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.")[:100] or "unnamed"


def _strategy_file(strategy: str) -> str:
    """Turn `random:0.001` into `random-0.001`; a digest keeps unsafe names distinct."""
    if re.fullmatch(r"[A-Za-z0-9._+:]{1,100}", strategy):
        return _file_name(strategy)
    digest = hashlib.sha256(strategy.encode()).hexdigest()[:8]
    return f"{_file_name(strategy)}-{digest}"


def checked_path(root: Path, backbone_id: str, task: str, strategy: str) -> Path:
    """Return the path of a delta that a request names; it lies below the root, whatever the names.

    Raises:
        DeltaNotFoundError: no delta can have this name.
    """
    if not re.fullmatch(NAME_PATTERN, task):
        raise DeltaNotFoundError("task", task, ())
    if not re.fullmatch(STRATEGY_PATTERN, strategy):
        raise DeltaNotFoundError("strategy", strategy, ())
    return delta_path(root, backbone_id, task, strategy)


def is_version(text: str) -> bool:
    """Tell whether a text can be the version of a delta."""
    return re.fullmatch(_VERSION, text) is not None


def kept_path(path: Path, version: str) -> Path:
    """Return the path that keeps a version of the delta whose default file is `path`.

    Raises:
        DeltaNotFoundError: no version has this name.
    """
    if not is_version(version):
        raise DeltaNotFoundError("version", version, ())
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}@{version}{SUFFIX}")


def default_of(path: Path) -> tuple[Path, str] | None:
    """Return the default file and the version of a kept file; None for any other file."""
    found = _KEPT.fullmatch(path.name.removesuffix(SUFFIX))
    return found and (path.with_name(f"{found['stem']}{SUFFIX}"), found["version"])


def kept_files(path: Path) -> list[Path]:
    """Return the files that keep versions of a delta, the one that was published last first."""
    found: list[tuple[int, Path]] = []
    begin = f"{path.name.removesuffix(SUFFIX)}@"  # a folder may have thousands of others
    try:
        with os.scandir(path.parent) as entries:
            for entry in entries:
                if not entry.name.startswith(begin) or not entry.name.endswith(SUFFIX):
                    continue
                kept = default_of(path.parent / entry.name)
                if kept and kept[0] == path:
                    found.append((entry.stat().st_mtime_ns, path.parent / entry.name))
    except FileNotFoundError:  # the folder, or a file that another server has just removed
        pass
    return [file for _, file in sorted(found, reverse=True)]


def find_delta_files(
    roots: Sequence[Path], on_error: Callable[[Path, OSError], None] | None = None
) -> Iterator[Path]:
    """Yield the delta files below folders, each once, without hidden ones, such as macOS leaves.

    A root that is a file is yielded itself. Links to folders are not followed, since they may be
    circular.

    Args:
        roots: folders or files.
        on_error: called with each folder that can't be read, and the error; None raises it.
    """
    seen: set[str] = set()
    for root in roots:
        is_file = os.path.isfile(root)  # noqa: PTH113 - Path.is_file raises where access is denied
        for path in [root] if is_file else sorted(_files_below(root, on_error)):
            real = os.path.realpath(path)  # Path.resolve raises on circular links
            if real not in seen:
                seen.add(real)
                yield path


def _files_below(root: Path, on_error: Callable[[Path, OSError], None] | None) -> Iterator[Path]:
    """Yield everything below a folder that is called like a delta; no depth is too deep."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
            waiting += [
                folder / entry.name for entry in found if entry.is_dir(follow_symlinks=False)
            ]
        except OSError as error:
            if on_error is None:
                raise
            on_error(folder, error)
            continue
        yield from (folder / entry.name for entry in found if entry.name.endswith(SUFFIX))
