"""Processors and allocators, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASK_FOR_INT8 = """
import torch
from deltas import BackboneError, pick_precision
from deltas.kernels.linear import int8_matmul
try:
    print(pick_precision("int8", torch.device("cpu")))
except BackboneError as error:
    print(error)
wrong = 0
for rows, width, outputs in ((1, 384, 1536), (64, 1536, 384), (300, 768, 768)):
    x = torch.full((rows, width), 127, dtype=torch.int8)
    w = torch.full((outputs, width), 127, dtype=torch.int8)
    w[::2] = -127
    wrong += not torch.equal(int8_matmul(x, w.t()).double(), x.double() @ w.double().t())
print(wrong)
"""


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_int8_is_refused_where_sums_overflow(isa: str) -> None:
    """Without VNNI, or with oneDNN told not to use it, answers are wrong on most processors.

    On some without AVX-512, oneDNN takes a path whose sums are exact; there int8 is right.
    """
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    command = [sys.executable, "-c", ASK_FOR_INT8]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    answer, wrong = done.stdout.splitlines()
    assert ("needs a CPU with exact int8 products" in answer) == (int(wrong) > 0)


FAULTS = """
import resource, sys, torch
from deltas import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    return [torch.empty(16 << 20, dtype=torch.uint8).fill_(1) for _ in range(8)][:0]
work(), work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_used_again() -> None:
    """A fresh page costs a page fault: 32,768 per pass if the blocks are returned."""
    command = [sys.executable, "-c", FAULTS, "keep"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32_768


GIVEN_BACK = """
import os, torch
from pathlib import Path
from deltas.encoder.bank import VectorTable
from deltas.hardware import give_back_freed_memory, keep_freed_memory
def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
keep_freed_memory()
held, pins = [], []
for _ in range(50):
    held.append(torch.ones(1 << 19))
    pins.append(bytearray(5000))
table = VectorTable({"bias": torch.zeros(500)})
before = resident_bytes()
held.clear()
table.reserve(10_000)
give_back_freed_memory()
print(before - resident_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_given_back_at_the_end_of_a_start() -> None:
    """100 MB are freed in blocks between used ones; reserved, unwritten rows do not keep them.

    20 MB of the reserved rows are never written to.
    """
    command = [sys.executable, "-c", GIVEN_BACK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 95_000_000
