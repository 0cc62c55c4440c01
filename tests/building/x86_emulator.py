"""A static Linux program for x86-64 with AVX-512, run on any x86-64 Linux by Bochs, in the package bochscpu-python."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from pathlib import Path

from .linux_program import PAGE, LinuxProgram

# The package is linked with the names that two functions have since glibc 2.38; an older glibc has them under these.
SINCE_GLIBC_2_38 = """
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
int __isoc23_sscanf(const char* text, const char* format, ...) {
  va_list values;
  va_start(values, format);
  const int count = vsscanf(text, format, values);
  va_end(values);
  return count;
}
unsigned long long __isoc23_strtoull(const char* text, char** end, int base) { return strtoull(text, end, base); }
"""
# Below the program: the tables that map all addresses to themselves, and where a system call leads.
TABLES, CALLED = 0x1000, 0x3000
# clflush [rsp], which Bochs reports, and which changes nothing; jmp rcx, where syscall put the address of the next instruction.
REPORT_AND_RETURN = bytes.fromhex("0fae3c24 ffe1")
PRESENT, WRITABLE, LARGE = 1, 2, 128
# What an operating system switches on before it runs programs of 64 bits.
CR0 = 1 << 31 | 1 << 5 | 1 << 4 | 1 << 1 | 1  # paging, errors of the floating-point unit, protected mode
CR4 = 1 << 18 | 1 << 10 | 1 << 9 | 1 << 5  # XSAVE, SSE with its exceptions, tables of 64 bits
EFER = 1 << 10 | 1 << 8 | 1  # long mode, syscall
XCR0 = 0b111 << 5 | 0b111  # registers of AVX-512, of AVX, of SSE, of the floating-point unit
MXCSR, FPCW = 0x1F80, 0x37F  # no traps
FPTW = 0xFFFF  # no register of the floating-point unit in use
CODE, DATA = (0x08, 0xA09B), (0x10, 0xC093)  # selector and attributes of flat segments
SET_FS = 0x1002


def bochs(folder: Path):
    """The module; a library that it may need is made in ``folder``."""
    try:
        import bochscpu.memory
    except ImportError as error:
        if "__isoc23_" not in str(error):
            raise
        library = folder / "since_glibc_2_38.so"
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
        subprocess.run(command, input=SINCE_GLIBC_2_38, text=True, check=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        import bochscpu.memory
    return bochscpu


class X86Program(LinuxProgram):
    SYSTEM_CALLS = {
        1: "write", 9: "mmap", 10: "mprotect", 11: "munmap", 12: "brk", 13: "rt_sigaction", 14: "rt_sigprocmask", 20: "writev",
        28: "madvise", 60: "exit", 158: "arch_prctl", 186: "gettid", 202: "futex", 218: "set_tid_address", 231: "exit_group",
        273: "set_robust_list",
    }  # fmt: skip

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.bochs, self.pages = bochs(path.parent), {}
        self.session = self.bochs.Session()
        self.session.missing_page_handler = self._page
        self.error = None

    def map(self, address: int, size: int) -> None:
        """A page comes when it is first touched."""

    def read(self, address: int, size: int) -> bytes:
        return b"".join(ctypes.string_at(*part) for part in self._parts(address, size))

    def write(self, address: int, content: bytes) -> None:
        done = 0
        for host, count in self._parts(address, len(content)):
            ctypes.memmove(host, content[done : done + count], count)
            done += count

    def _parts(self, address: int, size: int):
        """Where these bytes are on the host: address and count of each part within a page."""
        end = address + size
        while address < end:
            count = min(end, address // PAGE * PAGE + PAGE) - address
            yield self._page(address) + address % PAGE, count
            address += count

    def _page(self, address: int) -> int:
        page = address // PAGE
        if page not in self.pages:
            self.pages[page] = self.bochs.memory.allocate_host_page()
            self.bochs.memory.page_insert(page * PAGE, self.pages[page])
        return self.pages[page]

    def start(self, entry: int, stack: int) -> None:
        gigabytes = [i << 30 | LARGE | WRITABLE | PRESENT for i in range(512)]
        self.write(TABLES, struct.pack("<Q", TABLES + PAGE | WRITABLE | PRESENT))
        self.write(TABLES + PAGE, struct.pack("<512Q", *gigabytes))
        self.write(CALLED, REPORT_AND_RETURN)
        state = self.bochs.State()
        registers = {
            "cr0": CR0, "cr3": TABLES, "cr4": CR4, "efer": EFER, "xcr0": XCR0, "mxcsr": MXCSR, "mxcsr_mask": 0xFFFF, "fpcw": FPCW,
            "fptw": FPTW, "rflags": 2, "rip": entry, "rsp": stack, "lstar": CALLED, "star": CODE[0] << 32, "sfmask": 0,
        }  # fmt: skip
        registers |= {name: self._segment(*DATA) for name in ("ds", "es", "fs", "gs", "ss")}
        for name, value in (registers | {"cs": self._segment(*CODE)}).items():
            setattr(state, name, value)
        self.session.cpu.state = state
        hook = self.bochs.Hook()
        hook.clflush, hook.exception = self._called, self._failed
        self.session.run([hook])
        if self.error:
            raise RuntimeError(self.error)

    def _segment(self, selector: int, attributes: int):
        segment = self.bochs.Segment()
        segment.present, segment.selector, segment.base, segment.limit, segment.attr = True, selector, 0, 2**32 - 1, attributes
        return segment

    def stop(self) -> None:
        self.session.stop()

    def _called(self, *_) -> None:
        cpu = self.session.cpu
        if self.SYSTEM_CALLS.get(cpu.rax) == "arch_prctl" and cpu.rdi == SET_FS:
            segment = cpu.fs
            segment.base = cpu.rsi
            cpu.fs, cpu.rax = segment, 0
        else:
            cpu.rax = self.system_call(cpu.rax, cpu.rdi, cpu.rsi, cpu.rdx)

    def _failed(self, session, _cpu_id, vector, code) -> None:
        self.error = f"exception {vector} ({code}) at {session.cpu.rip:#x}: {self.read(session.cpu.rip, 15).hex()}"
        self.stop()
