"""The device module (``torch.cuda``'s role) that verl gets on a CPU.

``torch.cpu`` has the stream and synchronisation functions, but none of the memory and name queries that verl's workers
make after every batch. Those answer here with the neutral value; the rest is ``torch.cpu`` itself.
"""

from types import ModuleType

import torch


class CPUDeviceModule(ModuleType):
    """``torch.cpu`` plus the queries that only accelerator modules have."""

    def __init__(self):
        super().__init__("maspo_cpu_device", __doc__)

    def __getattr__(self, name):
        return getattr(torch.cpu, name)

    @staticmethod
    def is_available() -> bool:
        # verl asks this to decide whether to empty caches, seed and reset an accelerator: there is none.
        return False

    @staticmethod
    def get_device_name(device=None) -> str:
        return "CPU"  # the name that verl's table of FLOPS has for it

    @staticmethod
    def set_device(device) -> None:
        pass

    @staticmethod
    def empty_cache() -> None:
        pass

    @staticmethod
    def ipc_collect() -> None:
        pass

    @staticmethod
    def memory_allocated(device=None) -> int:
        return 0

    max_memory_allocated = memory_reserved = max_memory_reserved = memory_allocated

    @staticmethod
    def mem_get_info(device=None) -> tuple[int, int]:
        import psutil

        memory = psutil.virtual_memory()
        return memory.available, memory.total

    @staticmethod
    def get_rng_state(device=None) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device=None) -> None:
        torch.set_rng_state(state)

    @staticmethod
    def manual_seed(seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed


CPU_DEVICE = CPUDeviceModule()
