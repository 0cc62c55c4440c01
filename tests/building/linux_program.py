"""A static Linux program for another processor, run by an emulator: it gets memory, a stack, and the few system calls that a C
start-up and printf make. What an emulator does is in ``arm_emulator.py`` and ``x86_emulator.py``."""

from __future__ import annotations

import struct
from pathlib import Path

PAGE = 0x1000
STACK, STACK_BYTES = 0x40_0000_0000, 8 << 20
HEAP = 0x20_0000_0000
LOAD = 1  # a segment that has to be in memory
AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_HWCAP, AT_RANDOM, AT_NULL = 3, 4, 5, 6, 16, 25, 0
NO_SUCH_CALL = 2**64 - 38
# Done without doing anything; brk so gives no memory: there is mmap.
NOTHING_TO_DO = {
    "brk", "futex", "gettid", "madvise", "mprotect", "munmap", "rt_sigaction", "rt_sigprocmask", "set_robust_list", "set_tid_address",
}  # fmt: skip


class LinuxProgram:
    """``run()`` gives the exit status; ``output`` is what it printed.

    An emulator of a processor defines the rest.
    """

    SYSTEM_CALLS: dict[int, str]  # by number, those that are known; all others are answered that there is no such call
    HARDWARE = 0  # AT_HWCAP

    def __init__(self, path: Path) -> None:
        self.image = path.read_bytes()
        self.output, self.status, self.free = "", None, HEAP

    def map(self, address: int, size: int) -> None:
        """Zeros at whole pages."""
        raise NotImplementedError

    def read(self, address: int, size: int) -> bytes:
        raise NotImplementedError

    def write(self, address: int, content: bytes) -> None:
        raise NotImplementedError

    def start(self, entry: int, stack: int) -> None:
        """Returns after ``stop()``."""
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def run(self) -> int | None:
        (entry,) = struct.unpack_from("<Q", self.image, 24)
        self.start(entry, self._load())
        return self.status

    def system_call(self, number: int, a: int, b: int, c: int) -> int:
        """The answer to a call with these arguments."""
        name = self.SYSTEM_CALLS.get(number)
        if name in ("exit", "exit_group"):
            self.status = a
            self.stop()
        elif name == "write":
            return self._print(b, c)
        elif name == "writev":
            return sum(self._print(*struct.unpack("<QQ", self.read(b + 16 * i, 16))) for i in range(c))
        elif name == "mmap":
            size = -(-b // PAGE) * PAGE
            self.map(self.free, size)
            self.free += size
            return self.free - size
        elif name not in NOTHING_TO_DO:
            return NO_SUCH_CALL
        return 0

    def _print(self, address: int, size: int) -> int:
        self.output += self.read(address, size).decode()
        return size

    def _load(self) -> int:
        """Program and stack into memory; the address of the stack."""
        (headers,) = struct.unpack_from("<Q", self.image, 32)
        header_size, header_count = struct.unpack_from("<HH", self.image, 54)
        pages, first = set(), None
        for i in range(header_count):
            kind, _, offset, address, _, size, size_in_memory, _ = struct.unpack_from("<IIQQQQQQ", self.image, headers + i * header_size)
            if kind != LOAD:
                continue
            for page in set(range(address // PAGE, -(-(address + size_in_memory) // PAGE))) - pages:
                self.map(page * PAGE, PAGE)
                pages.add(page)
            self.write(address, self.image[offset : offset + size])
            first = address - offset if first is None else first
        self.map(STACK, STACK_BYTES)
        stack = STACK + STACK_BYTES - PAGE
        name = random = stack + PAGE // 2
        auxiliary = {
            AT_PHDR: first + headers, AT_PHENT: header_size, AT_PHNUM: header_count, AT_PAGESZ: PAGE,
            AT_HWCAP: self.HARDWARE, AT_RANDOM: random, AT_NULL: 0,
        }  # fmt: skip
        words = [1, name, 0, 0, *(word for pair in auxiliary.items() for word in pair)]  # argc, argv, environment
        self.write(stack, struct.pack(f"<{len(words)}Q", *words))
        return stack
