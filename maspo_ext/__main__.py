"""``python -m maspo_ext``: what is installed here, in a form fit for a bug report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import maspo_ext
from maspo_ext._build_info import BUILD


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Print versions, what was built, and which CPU kernels run."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    for name, value in (
        ("maspo_ext", f"{maspo_ext.__version__} ({maspo_ext.__path__[0]})"),
        ("build", BUILD["summary"].removeprefix("maspo_ext: ")),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("cpu kernels", torch.ops.maspo.cpu_isa()),
        ("cuda device", device),
        ("verl", _version_of("verl")),
    ):
        print(f"{name:12} {value}")


if __name__ == "__main__":
    main()
