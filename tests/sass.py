"""Machine code of a kernel, read without a disassembler: how many loads are on their way at once.

A cubin is an ELF file with one section .text.NAME for each kernel. From Volta to Hopper every
instruction has 128 bits: its operation in the lowest 12, and what it waits for from bit 105 on
(Jia et al. 2018, Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking, section 2.1).
An instruction of unknown duration, such as a load, takes one of six barriers, and whatever needs
its result waits for that barrier. NVIDIA does not publish the encoding, so tests first check it on
kernels whose loads are known.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

_NO_BARRIER = 7


class Kind(NamedTuple):
    """What an instruction does."""

    operation: int  # one of loads from global memory, one of jumps, ...
    width: int  # where it loads: a code for the number of bytes


class Instruction(NamedTuple):
    """What is read of an instruction."""

    kind: Kind
    barrier: int | None  # the one that it holds until its result is there
    waits_for: frozenset[int]  # barriers


def instructions(cubin: bytes, kernel: str) -> list[Instruction]:
    """Read a kernel's machine code."""
    text = _sections(cubin)[f".text.{kernel}"]
    return [_instruction(*words) for words in struct.iter_unpack("<QQ", text)]


def _sections(elf: bytes) -> dict[str, bytes]:
    """Read the sections of a little-endian ELF file of 64 bits, by name."""
    assert elf[:6] == b"\x7fELF\x02\x01"
    (start,) = struct.unpack_from("<Q", elf, 40)
    size, count, names_at = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + k * size) for k in range(count)]
    *_, first, length = headers[names_at]
    names = elf[first : first + length]
    return {
        names[name : names.index(b"\0", name)].decode(): elf[offset : offset + n]
        for name, _, _, _, offset, n in headers
    }


def _instruction(low: int, high: int) -> Instruction:
    control = high >> (105 - 64)
    barrier, waits = control >> 5 & 7, control >> 11 & 63
    return Instruction(
        Kind(low & 0xFFF, high >> (73 - 64) & 7),
        None if barrier == _NO_BARRIER else barrier,
        frozenset(k for k in range(6) if waits >> k & 1),
    )


def most_at_once(code: Sequence[Instruction], load: Kind) -> int:
    """Count the loads that begin before any of them must have ended.

    It is the most of any stretch of code without a jump, as if each began with nothing under way.
    """
    # A kernel ends in a jump to itself, followed by instructions that do nothing.
    operations = [one.kind.operation for one in code]
    jump = next(one for one in reversed(operations) if one != operations[-1])
    under_way: list[int | None] = []
    most = 0
    for one in code:
        under_way = [b for b in under_way if b not in one.waits_for]
        if one.kind.operation == jump:
            under_way.clear()
        if one.kind == load:
            under_way.append(one.barrier)
        most = max(most, len(under_way))
    return most
