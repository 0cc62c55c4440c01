"""The methods, one file each: its typed hyper-parameters and its formula in plain torch.

The same formula in C++ is in ``csrc/core/``, in a header of the name that ``MethodConfig.method`` gives.
"""

from __future__ import annotations

from maspo_ext.methods.bapo import BapoConfig
from maspo_ext.methods.base import MethodConfig
from maspo_ext.methods.dac import DacConfig
from maspo_ext.methods.entropy_adv import EntropyAdvConfig
from maspo_ext.methods.maspo import MaspoConfig
from maspo_ext.methods.ppo import ClipHigherConfig, PpoConfig
from maspo_ext.methods.sapo import SapoConfig

RATIO_MODES: dict[str, type[MethodConfig]] = {
    "maspo": MaspoConfig,
    "ppo": PpoConfig,
    "grpo": PpoConfig,
    "clip_higher": ClipHigherConfig,
    "dac": DacConfig,
    "entropy_adv": EntropyAdvConfig,
    "bapo": BapoConfig,
    "sapo": SapoConfig,
}

__all__ = [
    "RATIO_MODES",
    "BapoConfig",
    "ClipHigherConfig",
    "DacConfig",
    "EntropyAdvConfig",
    "MaspoConfig",
    "MethodConfig",
    "PpoConfig",
    "SapoConfig",
]
