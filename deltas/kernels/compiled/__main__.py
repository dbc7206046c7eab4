"""Compiles a kernel to an object file: `python -m deltas.kernels.compiled MODULE:FUNCTION`.

It writes the object to standard output, for `deltas.kernels.compiled.machine_code`, which runs this
in a process of its own. numba makes optimised code in LLVM's intermediate language, LLVM makes
machine code of it. Tested by tests/unit/deltas/kernels/compiled/test_machine_code.py.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import numba
from llvmlite import binding

from deltas.kernels.compiled import SYMBOL
from deltas.kernels.compiled.language import OPTIONS

_ENTRY = """
define void @"{symbol}"(ptr %arguments) {{
  %result = alloca ptr
  %error = alloca ptr
  call i32 @"{native}"(ptr %result, ptr %error, ptr %arguments)
  ret void
}}
"""
# Functions of the C library that the machine code may call.
_C_LIBRARY = {"memset", "memcpy", "memmove", "sqrtf", "sqrt", "log2f", "exp2f"}


def main(arguments: list[str] | None = None) -> int:
    """Compile the kernel that the only argument names; returns the exit status."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    # numba's warnings must not end up in the object file.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with out:
        out.write(compile_kernel(name))
    return 0


def compile_kernel(name: str) -> bytes:
    """Return the object file of a kernel, whose only function is called `SYMBOL`.

    Args:
        name: "module:function".

    Raises:
        ValueError: the kernel allocates memory or may raise, so that it needs numba to run.
    """
    module, _, function = name.partition(":")
    kernel = getattr(import_module(module), function)
    made = numba.cfunc("void(voidptr)", **OPTIONS)(kernel)
    native = made.native_name.removeprefix("cfunc.")  # without numba's handling of exceptions
    code = binding.parse_assembly(made.inspect_llvm() + _ENTRY.format(symbol=SYMBOL, native=native))
    for found in code.functions:
        if not found.is_declaration and found.name != SYMBOL:
            found.linkage = "internal"
    machine = _target_machine()
    _drop_unused(code, machine)
    called = {found.name for found in code.functions if found.is_declaration}
    needs = {other for other in called - _C_LIBRARY if not other.startswith("llvm.")}
    if needs:
        raise ValueError(
            f"kernel {name} calls {', '.join(sorted(needs))}, which only numba has; take scratch "
            "memory in place of new arrays, and raise nothing"
        )
    made_object: bytes = machine.emit_object(code)
    return made_object


def _target_machine() -> Any:
    """Return LLVM's machine for the code that numba compiles for."""
    config = numba.config
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    triple = binding.Target.from_default_triple()
    return triple.create_target_machine(
        cpu=config.CPU_NAME or binding.get_host_cpu_name(),
        features=config.CPU_FEATURES or binding.get_host_cpu_features().flatten(),
        opt=3,
        reloc="static" if triple.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )


def _drop_unused(code: Any, machine: Any) -> None:
    """Remove functions that nothing calls, such as those that count references."""
    passes = binding.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    options = binding.create_pipeline_tuning_options(speed_level=2)
    passes.run(code, binding.create_pass_builder(machine, options))


if __name__ == "__main__":
    sys.exit(main())
