"""Checks of an installed wheel, run by `make test-wheel` in an environment of its own.

Not named test_*: in the development environment the package is installed from the source tree, and these would fail.
"""

from importlib.metadata import distribution
from pathlib import Path

import torch

import maspo_ext

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_is_what_is_tested():
    installed = Path(maspo_ext.__file__).resolve()
    assert ROOT / "maspo_ext" not in installed.parents
    assert installed == Path(distribution("maspo_ext").locate_file("maspo_ext/__init__.py")).resolve()


def test_this_is_another_torch_than_the_one_of_the_build():
    from maspo_ext._build_info import BUILD

    assert BUILD["torch_headers"].split("+")[0] != torch.__version__.split("+")[0]


def test_the_op_is_there_for_every_device_of_the_build():
    from maspo_ext._build_info import BUILD

    def has(key):
        return torch._C._dispatch_has_kernel_for_dispatch_key("maspo::loss_forward", key)

    assert has("CPU")
    assert has("CUDA") is BUILD["cuda"]
