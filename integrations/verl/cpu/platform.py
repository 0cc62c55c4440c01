"""verl's platform interface, answered for a machine without an accelerator."""

from contextlib import contextmanager

import torch
from verl.plugin.platform.platform_base import PlatformBase

from .device_module import CPU_DEVICE


class PlatformCPU(PlatformBase):
    """Trains on the CPU: plain gloo, no caches, no profiler ranges.

    Selected by ``VERL_PLATFORM=cpu`` only. :meth:`is_platform_available` is False so that the CPU-only head node of an
    accelerator cluster, where this plugin may be installed too, never detects itself as this platform.
    """

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = CPU_DEVICE

    def is_available(self) -> bool:
        """Whether it can be used, once selected: always."""
        return True

    def is_platform_available(self, use_smi_check=False) -> bool:
        """Whether verl may select it by itself: never."""
        return False

    def current_device(self) -> torch.device:
        """What verl moves tensors to."""
        # An index would make `tensor.to(current_device())` mean a CUDA device.
        return torch.device("cpu")

    def device_count(self) -> int:
        """Of this process."""
        return 1

    def set_device(self, device_index: int) -> None:
        """There is no other."""

    def synchronize(self, device_index=None) -> None:
        """Nothing is queued."""

    def manual_seed(self, seed: int) -> None:
        """Of the process, which has one generator."""
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """The same: all devices are this one."""
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """The CPU's allocator has none."""

    def empty_cache(self) -> None:
        """The CPU's allocator keeps none."""

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        """A CPU has no compute capability; verl takes None for unknown."""
        return None, None

    def communication_backend_name(self) -> str:
        """Of torch.distributed."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """The variable that says which devices a process sees."""
        # The name Ray uses for the resource below; verl stores and restores it for its workers.
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str):
        """A range for a GPU's profiler: nothing here."""
        yield

    def profiler_start(self) -> None:
        """There is no GPU's profiler."""

    def profiler_stop(self) -> None:
        """As above."""

    def ray_resource_name(self) -> str:
        """What a worker asks Ray for."""
        # verl counts Ray resources called "GPU" (or "NPU") to decide whether the workers fit; a CPU run declares as
        # many of them as it wants ranks: +ray_kwargs.ray_init.num_gpus=N.
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """Variables that would keep Ray from setting the one above: none."""
        return []

    def is_ipc_supported(self) -> bool:
        """Whether processes share a device's memory: there is no device."""
        return False

    def cudart(self) -> None:
        """The CUDA runtime: none."""
        return None
