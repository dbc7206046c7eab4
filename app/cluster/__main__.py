"""Runs a cluster: reads flags and settings, starts it, and ends it at the first signal.

Tested by tests/unit/app/cluster/test_command.py.
"""

from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from app.process.logs import configure_logging
from app.process.settings import Settings, SettingsError, load_settings

_NO_TLS = (
    "DELTABERT_SSL_CERTFILE is set, but the proxy of a cluster speaks plain HTTP; unset it, and "
    "put a proxy with the certificate in front\n"
)
_MISSING = "this needs the library ray; pip install 'deltabert[ray]'\n"


def main(arguments: Sequence[str] | None = None, prog: str = "python -m app.cluster") -> int:
    """Run the command; returns the exit code: 0 stopped by a signal, 1 failed, 2 misuse."""
    options = _parser(prog).parse_args(arguments)
    most = options.max_replicas or options.replicas
    if most < options.replicas:
        _parser(prog).error(
            f"--max-replicas is {most}, less than --replicas ({options.replicas}); raise it"
        )
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if settings.ssl_certfile is not None:
        sys.stderr.write(_NO_TLS)
        return 2
    if find_spec("ray") is None:
        sys.stderr.write(_MISSING)
        return 2
    configure_logging(settings.log_format, settings.log_level)
    from app.cluster.launch import ClusterOptions, running_cluster, wait_for_signal
    from app.server.server import StartError

    cluster = ClusterOptions(options.replicas, most, options.threads, options.address)
    try:
        # Other machines may have other files.
        if options.address is None and (status := _check(settings)):
            return status
        with running_cluster(settings, cluster):
            logging.getLogger("app").info("%s: stopping", wait_for_signal())
    except KeyboardInterrupt:  # while it was starting
        return 0
    except SystemExit as end:
        if end.code != signal.SIGTERM:  # Ray's own handler ends so, while Ray starts
            raise
        return 0
    except (StartError, RuntimeError, OSError, ValueError) as error:
        sys.stderr.write(f"the cluster could not be started: {error}\n")
        return 1
    return 0


def _check(settings: Settings) -> int:
    """Check the port, and all settings in a process of its own; returns that process's exit status.

    Otherwise Ray would try both again and again, for minutes.

    Raises:
        StartError: the port is taken.
    """
    from app.server.server import listen

    listen(settings).close()
    return subprocess.run([sys.executable, "-m", "app", "--check"], check=False).returncode


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve deltas over HTTP from several replicas on Ray. The settings of "
        "'python -m app --help' are those of each replica. Needs the extra ray.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--replicas", type=_positive, default=2, help="initial and minimum number of replicas (2)")
    add(
        "--max-replicas",
        type=_positive,
        help="maximum number of replicas; above --replicas, their number follows the time "
        "that rows wait (default: the same number)",
    )
    add("--threads", type=_positive, default=1, help="CPU threads of each replica (1)")
    add(
        "--address",
        help="a running cluster of Ray, as HOST:PORT or auto (default: one is started here)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
