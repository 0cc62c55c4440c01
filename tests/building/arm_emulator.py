"""A static Linux program for 64-bit ARM, run on any machine by the Unicorn emulator."""

from __future__ import annotations

from pathlib import Path

from .linux_program import LinuxProgram


class ArmProgram(LinuxProgram):
    HARDWARE = 3  # floating-point numbers and vectors
    SYSTEM_CALLS = {
        64: "write", 66: "writev", 93: "exit", 94: "exit_group", 96: "set_tid_address", 98: "futex", 99: "set_robust_list",
        134: "rt_sigaction", 135: "rt_sigprocmask", 178: "gettid", 214: "brk", 215: "munmap", 222: "mmap", 226: "mprotect",
        233: "madvise",
    }  # fmt: skip

    def __init__(self, path: Path) -> None:
        import unicorn
        from unicorn import arm64_const

        super().__init__(path)
        self.register = arm64_const
        self.cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self.cpu.hook_add(unicorn.UC_HOOK_INTR, lambda *_: self._called())
        self.cpu.reg_write(arm64_const.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # switches the vector registers on

    def map(self, address: int, size: int) -> None:
        self.cpu.mem_map(address, size)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.cpu.mem_read(address, size))

    def write(self, address: int, content: bytes) -> None:
        self.cpu.mem_write(address, content)

    def start(self, entry: int, stack: int) -> None:
        self.cpu.reg_write(self.register.UC_ARM64_REG_SP, stack)
        self.cpu.emu_start(entry, 0)

    def stop(self) -> None:
        self.cpu.emu_stop()

    def _called(self) -> None:
        number = self.cpu.reg_read(self.register.UC_ARM64_REG_X8)
        arguments = (self.cpu.reg_read(self.register.UC_ARM64_REG_X0 + i) for i in range(3))
        self.cpu.reg_write(self.register.UC_ARM64_REG_X0, self.system_call(number, *arguments))
