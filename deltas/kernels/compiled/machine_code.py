"""Loads the machine code of a kernel, from the disk if an earlier process has compiled it.

A kernel is compiled by `python -m deltas.kernels.compiled` in a process of its own, with which
numba's memory goes. LLVM's linker then puts the object file into this process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from llvmlite import binding

from deltas.kernels import disk_cache
from deltas.kernels.compiled import SYMBOL

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_coming: dict[str, Future[bytes]] = {}


class MachineCode(NamedTuple):
    """A kernel's code in this process."""

    address: int
    engine: Any  # keeps the code alive


def load(name: str) -> MachineCode:
    """Load a kernel, and compile it if it is not on disk.

    Args:
        name: "module:function", importable by a new process.

    Raises:
        ValueError: the kernel cannot run without numba.
    """
    with _lock:
        coming = _coming.pop(name, None)
    return _linked(coming.result() if coming else _object_file(name))


def begin(names: Iterable[str]) -> None:
    """Begin to read or compile kernels, all at the same time; `load` waits for the one it needs.

    The threads are daemons, so that a process that ends waits for no compiler.
    """
    for name in names:
        with _lock:
            if name in _coming:
                continue
            coming = _coming[name] = Future()
        threading.Thread(target=_fulfil, args=(name, coming), daemon=True).start()


def _fulfil(name: str, coming: Future[bytes]) -> None:
    try:
        coming.set_result(_object_file(name))
    except Exception as error:  # noqa: BLE001 - `load` raises it
        coming.set_exception(error)


def _object_file(name: str) -> bytes:
    file = f"{name.replace(':', '.')}-{key(name)}.o"
    content = disk_cache.read(file)
    if content is None:
        started = time.perf_counter()
        content = _compile(name)
        logger.info("compiled %s in %.1f s", name, time.perf_counter() - started)
        disk_cache.write(file, content)
    return content


def key(name: str) -> str:
    """Return a digest of all that a kernel's machine code depends on, the processor included."""
    module = find_spec(name.partition(":")[0])
    sources = sorted(Path(__file__).parent.glob("*.py"))
    if module is not None and module.origin:
        sources.append(Path(module.origin))
    parts = [source.read_bytes() for source in sources]
    features = binding.get_host_cpu_features().flatten()
    facts = [version("numba"), version("llvmlite"), binding.get_host_cpu_name(), features]
    facts += [
        f"{variable}={value}"
        for variable, value in os.environ.items()
        if variable.startswith("NUMBA_")
    ]
    digest = hashlib.sha256()
    for part in (*parts, *(fact.encode() for fact in sorted(facts))):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def _compile(name: str) -> bytes:
    if "numba" in sys.modules:  # nothing is gained by another process
        return _compile_here(name)
    command = [sys.executable, "-m", "deltas.kernels.compiled", name]
    paths = os.pathsep.join(path or os.curdir for path in sys.path)
    try:
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        logger.debug("%s is compiled in this process: %s", name, error)
        return _compile_here(name)
    return done.stdout


def _compile_here(name: str) -> bytes:
    content: bytes = import_module("deltas.kernels.compiled.__main__").compile_kernel(name)
    return content


def _linked(content: bytes) -> MachineCode:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(content))
    engine.finalize_object()
    return MachineCode(engine.get_function_address(SYMBOL), engine)
