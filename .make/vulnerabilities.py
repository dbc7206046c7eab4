"""Look the pinned packages up among known vulnerabilities. `make audit` runs it.

pip-audit asks the database of OSV (https://osv.dev) about every line of constraints.txt, which has
the packages of the image and all that are used to test and build it. Exit status: 1 if one of them
has a known vulnerability; 0 if none has, and also if the database cannot be used, which is said.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parent.parent
OSV = "https://api.osv.dev/v1/query"
# The example of OSV's own documentation: an answer without it comes from something else.
KNOWN: dict[str, Any] = {"package": {"name": "jinja2", "ecosystem": "PyPI"}, "version": "2.4.1"}
_TIMEOUT_S = 15


def why_unusable(url: str) -> str:
    """Ask the database about a version with known vulnerabilities; "" if it knows some."""
    try:
        response = requests.post(url, json=KNOWN, timeout=_TIMEOUT_S)
        response.raise_for_status()
        if response.json().get("vulns"):
            return ""
    except (requests.RequestException, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"it knows no vulnerability of {KNOWN['package']['name']} {KNOWN['version']}"


def main() -> int:
    """Run pip-audit if the database can be used; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make audit", description="Audit the pinned packages.")
    parser.add_argument("--osv-url", default=OSV, help="address that answers queries")
    parser.add_argument("--pins", type=Path, default=ROOT / "constraints.txt", help="what to audit")
    options = parser.parse_args()
    if reason := why_unusable(options.osv_url):
        print(f"NOT AUDITED: {options.osv_url} cannot be used ({reason}); run make audit elsewhere")
        return 0
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(options.pins)]
    command += ["--no-deps", "--disable-pip", "--strict", "--progress-spinner", "off"]
    command += ["--vulnerability-service", "osv", "--osv-url", options.osv_url]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
