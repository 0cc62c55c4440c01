"""A static Linux program for 64-bit ARM, run on any machine by the Unicorn emulator: it gets a stack and memory, and the few
system calls that a C start-up and printf make."""

from __future__ import annotations

import struct
from pathlib import Path

PAGE = 0x1000
STACK, STACK_BYTES = 0x7F00_0000_0000, 8 << 20
HEAP, HEAP_BYTES = 0x6000_0000_0000, 1 << 30
LOAD = 1  # a segment that has to be in memory
AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_HWCAP, AT_RANDOM, AT_NULL = 3, 4, 5, 6, 16, 25, 0
FP_AND_SIMD = 3
WRITE, WRITEV, EXIT, EXIT_GROUP, BRK, MMAP = 64, 66, 93, 94, 214, 222
# Done without doing anything: set_tid_address, futex, set_robust_list, rt_sigaction, rt_sigprocmask, gettid, munmap, mprotect,
# madvise; and brk, which so gives no memory: there is mmap. All others are answered that there is no such call.
DONE = {96, 98, 99, 134, 135, 178, 215, 226, 233, BRK}
NO_SUCH_CALL = 2**64 - 38


class Program:
    """``run()`` gives the exit status; ``output`` is what it printed."""

    def __init__(self, path: Path) -> None:
        import unicorn
        from unicorn import arm64_const as register

        self.image, self.register = path.read_bytes(), register
        self.output, self.status, self.free = "", None, HEAP
        self.cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self.cpu.hook_add(unicorn.UC_HOOK_INTR, lambda *_: self._system_call())
        self.cpu.reg_write(register.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # switches the vector registers on

    def run(self) -> int | None:
        (entry,) = struct.unpack_from("<Q", self.image, 24)
        self._load()
        self.cpu.emu_start(entry, 0)
        return self.status

    def _segments(self):
        (self.headers,) = struct.unpack_from("<Q", self.image, 32)
        self.header_size, self.header_count = struct.unpack_from("<HH", self.image, 54)
        for i in range(self.header_count):
            kind, _, offset, address, _, size, size_in_memory, _ = struct.unpack_from(
                "<IIQQQQQQ", self.image, self.headers + i * self.header_size
            )
            if kind == LOAD:
                yield address, self.image[offset : offset + size], size_in_memory, offset

    def _load(self) -> None:
        pages, first = set(), None
        for address, content, size, offset in self._segments():
            for page in set(range(address // PAGE, -(-(address + size) // PAGE))) - pages:
                self.cpu.mem_map(page * PAGE, PAGE)
                pages.add(page)
            self.cpu.mem_write(address, content)
            first = address - offset if first is None else first
        self.cpu.mem_map(STACK, STACK_BYTES)
        self.cpu.mem_map(HEAP, HEAP_BYTES)
        stack = STACK + STACK_BYTES - PAGE
        name = random = stack + PAGE // 2
        auxiliary = {
            AT_PHDR: first + self.headers, AT_PHENT: self.header_size, AT_PHNUM: self.header_count, AT_PAGESZ: PAGE,
            AT_HWCAP: FP_AND_SIMD, AT_RANDOM: random, AT_NULL: 0,
        }  # fmt: skip
        words = [1, name, 0, 0, *(word for pair in auxiliary.items() for word in pair)]  # argc, argv, environment
        self.cpu.mem_write(stack, struct.pack(f"<{len(words)}Q", *words))
        self.cpu.reg_write(self.register.UC_ARM64_REG_SP, stack)

    def _system_call(self) -> None:
        number = self.cpu.reg_read(self.register.UC_ARM64_REG_X8)
        a, b, c = (self.cpu.reg_read(self.register.UC_ARM64_REG_X0 + i) for i in range(3))
        result = 0
        if number in (EXIT, EXIT_GROUP):
            self.status = a
            self.cpu.emu_stop()
        elif number == WRITE:
            result = self._print(b, c)
        elif number == WRITEV:
            result = sum(self._print(*struct.unpack("<QQ", self.cpu.mem_read(b + 16 * i, 16))) for i in range(c))
        elif number == MMAP:
            result, self.free = self.free, self.free - (-b // PAGE) * PAGE
        elif number not in DONE:
            result = NO_SUCH_CALL
        self.cpu.reg_write(self.register.UC_ARM64_REG_X0, result)

    def _print(self, address: int, size: int) -> int:
        self.output += self.cpu.mem_read(address, size).decode()
        return size
