"""Fuzzes the readers: `python -m tests.fuzz --minutes 30 --only delta` (`make fuzz`).

Atheris (libFuzzer) chooses inputs by the lines of our code that they reach, so it comes to checks
that random changes miss. Each reader has a process of its own. Inputs that reach something new stay
in runs/fuzz/<reader>/corpus, and the next call goes on from there. An input that breaks a promise
is kept once for each place in the code, in runs/fuzz/<reader>/findings; it becomes a test.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import IO, Any

HOME = Path("runs/fuzz")
_MAX_INPUT_BYTES = 2**18
_MAX_HANG_S = 300.0  # beyond a process's share, for its start and for the last input


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz every reader for its share of the time; return 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of all readers together")
    parser.add_argument("--only", default="", help="readers whose names begin like this")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return _fuzz(options.worker, options.minutes * 60)
    from tests.fuzz.readers import READERS

    names = [name for name in READERS if name.startswith(options.only)]
    if not names:
        parser.error(f"no reader is called {options.only!r}; there are: {', '.join(READERS)}")
    failed = False
    for name in names:
        share = options.minutes / len(names)
        command = [sys.executable, "-m", "tests.fuzz", "--worker", name, "--minutes", str(share)]
        log = HOME / name / "log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            code = _run(command, out, share * 60 + _MAX_HANG_S)
        failed |= _report(name, code)
    return int(failed)


def _run(command: list[str], out: IO[str], limit_s: float) -> int:
    """Run a reader's process and return its exit code; a code of a library may hang in it."""
    try:
        return subprocess.run(
            command, stdout=out, stderr=out, check=False, timeout=limit_s
        ).returncode
    except subprocess.TimeoutExpired:
        return -1


def _report(name: str, code: int) -> bool:
    """Print a line about a reader's run; return True if something is wrong."""
    path, findings = HOME / name / "counts.json", sorted((HOME / name / "findings").glob("*"))
    counts: dict[str, Any] = {"inputs": 0, "outcomes": {}}
    if path.exists():
        counts = json.loads(path.read_text())
    outcomes = counts["outcomes"]
    corpus = len(list((HOME / name / "corpus").glob("*")))
    sys.stdout.write(
        f"{name:34} {counts['inputs']:9,} inputs, {outcomes.get('value', 0):9,} values, "
        f"{len(outcomes) - ('value' in outcomes):4} kinds of errors, corpus {corpus:5,}, "
        f"{len(findings)} findings{f', exit code {code}' if code else ''}\n"
    )
    sys.stdout.flush()
    return bool(findings) or bool(code)


def _fuzz(name: str, seconds: float) -> int:
    """Fuzz one reader in this process; it ends with the process."""
    import atheris

    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["deltas", "training"], enable_loader_override=False):
        from tests.fuzz.limits import examine
        from tests.fuzz.readers import READERS, prepare

    reader, home = READERS[name], (HOME / name).resolve()
    corpus, findings = home / "corpus", home / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(reader.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    work = Path(tempfile.mkdtemp(prefix="deltabert-fuzz-"))
    prepare(reader, work)
    outcomes: Counter[str] = Counter()
    ends = time.monotonic() + seconds

    def try_input(content: bytes) -> None:
        try:
            outcomes[examine(reader, work, content)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            _keep(findings, content, error)
            outcomes["finding"] += 1
        if time.monotonic() > ends:
            counts = {"inputs": outcomes.total(), "outcomes": dict(outcomes.most_common())}
            (home / "counts.json").write_text(json.dumps(counts, indent=1))
            shutil.rmtree(work)
            os._exit(0)  # libFuzzer itself ends after a number of inputs only

    def mutate(content: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() >= 0.2:
            # An input of a long run may have lost the form that the reader's mutation expects.
            with suppress(Exception):
                return reader.mutate(content, rng)[:max_size]
        return bytes(atheris.Mutate(content, max_size))[:max_size]

    flags = [f"-max_len={_MAX_INPUT_BYTES}", "-timeout=600", "-rss_limit_mb=4096", "-verbosity=0"]
    atheris.Setup([name, str(corpus), *flags], try_input, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


def _keep(findings: Path, content: bytes, error: BaseException) -> None:
    """Keep one input for each place of our code and kind of error, the smallest one."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename]
    place = f"{Path(ours[-1].filename).stem}-{ours[-1].lineno}" if ours else "nowhere"
    kept = findings / f"{type(error).__name__}-{place}"
    if not kept.exists() or len(content) < kept.stat().st_size:
        kept.write_bytes(content)
        text = "".join(traceback.format_exception(error))[-6000:]
        kept.with_suffix(".txt").write_text(text, errors="replace")


if __name__ == "__main__":
    sys.exit(main())
