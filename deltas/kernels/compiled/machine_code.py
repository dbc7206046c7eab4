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
import time
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from llvmlite import binding

from deltas.kernels import disk_cache
from deltas.kernels.compiled import SYMBOL

logger = logging.getLogger(__name__)


class _Compiler(NamedTuple):
    process: subprocess.Popen[bytes]
    started: float  # on `time.perf_counter`


_compilers: dict[str, _Compiler] = {}  # those that `begin` has started, by the kernel's name


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
    begin([name])
    compiler = _compilers.pop(name, None)
    content = None if compiler else disk_cache.read(_file_of(name))
    if content is None:
        started = compiler.started if compiler else time.perf_counter()
        content = _output_of(compiler, name) if compiler else None
        content = _compiled_here(name) if content is None else content
        logger.info("compiled %s in %.1f s", name, time.perf_counter() - started)
        disk_cache.write(_file_of(name), content)
    return _linked(content)


def begin(names: Iterable[str]) -> None:
    """Start a compiler for each kernel that is not on disk; `load` waits for the one it needs.

    Processes and no threads: a thread that comes before `deltas.hardware.keep_freed_memory` would
    get a heap of its own.
    """
    if "numba" in sys.modules:  # nothing is gained by another process
        return
    for name in names:
        if name not in _compilers and disk_cache.read(_file_of(name)) is None:
            command = [sys.executable, "-m", "deltas.kernels.compiled", name]
            paths = os.pathsep.join(path or os.curdir for path in sys.path)
            environment = os.environ | {"PYTHONPATH": paths}
            pipe, started = subprocess.PIPE, time.perf_counter()
            try:
                process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe)
            except OSError as error:
                logger.debug("no process can be started for %s: %s", name, error)
            else:
                _compilers[name] = _Compiler(process, started)


def _output_of(compiler: _Compiler, name: str) -> bytes | None:
    """Wait for a compiler; return its object file, or None if it has failed."""
    output, problem = compiler.process.communicate()
    if compiler.process.returncode == 0:
        return output
    logger.debug("%s is compiled in this process: %s", name, problem.decode(errors="replace"))
    return None


def _file_of(name: str) -> str:
    return f"{name.replace(':', '.')}-{key(name)}.o"


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


def _compiled_here(name: str) -> bytes:
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
