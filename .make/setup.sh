#!/bin/sh
# Makes a virtual environment, named by its argument, and installs the project with pinned versions.
# Called by `make setup`, only when pyproject.toml or constraints.txt are newer than the last install.
# PYTHON names the interpreter; without it the first supported one on the path is taken.
# INSTALLER=uv has uv install, which is faster; where uv can't, and without it, pip does.
set -eu

venv=$1
supported='import sys; (3, 11) <= sys.version_info[:2] <= (3, 14) or sys.exit(1)'

fail() {
    echo "$1" >&2
    exit 1
}

find_python() {
    for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
        if "$name" -c "$supported" >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
}

version_of() {
    "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo "no Python that runs"
}

python=${PYTHON:-$(find_python)}
if [ -z "$python" ]; then
    if command -v python3 >/dev/null 2>&1; then
        fail "DeltaBERT needs Python 3.11 to 3.14, but python3 is $(version_of python3): install one of these, or name it with 'make setup PYTHON=/path/to/python3.11'."
    fi
    fail "DeltaBERT needs Python 3.11 to 3.14 and none was found: install one, or name it with 'make setup PYTHON=/path/to/python3.11'."
fi
"$python" -c "$supported" 2>/dev/null ||
    fail "DeltaBERT needs Python 3.11 to 3.14, but PYTHON=$python is $(version_of "$python"): name another one with 'make setup PYTHON=/path/to/python3.11'."
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python cannot make virtual environments: install its venv module (Debian and Ubuntu: apt install python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv) and run make again."

if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv" 2>/dev/null || echo file)" ]; then
    fail "VENV=$venv is there and is no virtual environment: name another folder, it would be emptied."
fi

echo "Installing into $venv with Python $(version_of "$python"); the first time takes a few minutes."
# An environment that works is brought up to date; one half made, or of another Python, made anew.
if [ -n "${PYTHON:-}" ] || ! "$venv/bin/python" -c "$supported; import pip" >/dev/null 2>&1; then
    "$python" -m venv --clear "$venv"
fi
# --no-compile: most modules of PyTorch and transformers are never imported; it halves the time that
# the processor needs here; uv compiles none unless asked. The ones that are get compiled below: where
# PYTHONDONTWRITEBYTECODE is set, every process would else compile them anew, which takes seconds.
by_pip() {
    "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-compile \
        -c constraints.txt "$@"
}
# --no-config: what uv leaves out for `make lock`, a PyTorch from PyPI needs.
by_uv() {
    by_pip uv && "$venv/bin/python" -m uv pip install --no-config --quiet \
        --python "$venv/bin/python" -c constraints.txt "$@"
}
{ [ "${INSTALLER:-pip}" = uv ] && by_uv --editable '.[dev]'; } || by_pip --editable '.[dev]' &&
    PYTHONDONTWRITEBYTECODE='' "$venv/bin/python" -c \
        'import app.main, datasets, hypothesis, pytest, streamlit.testing.v1, training.run.train_delta, transformers.models.bert.modeling_bert' ||
    fail "Installing failed: see the message above; 'make setup' tries again."
touch "$venv/.installed"
echo "Installed."
