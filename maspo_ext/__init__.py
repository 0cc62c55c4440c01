"""Fused policy losses for reinforcement learning with verifiable rewards: MASPO and its peers as ``torch.ops.maspo.loss``.

Importing the package loads the compiled library and registers the op. See :func:`policy_loss` to begin with.
"""

from maspo_ext import _extension

_extension.load()

import maspo_ext.logits.reference  # noqa: E402, F401
from maspo_ext import ops, reference  # noqa: E402, F401
from maspo_ext.functional import PolicyLossOutput, policy_loss  # noqa: E402
from maspo_ext.logits.linear_logprob import linear_logprob  # noqa: E402
from maspo_ext.logits.linear_loss import LinearLossOutput, linear_loss  # noqa: E402
from maspo_ext.logits.logprob import LogprobOutput, logprob  # noqa: E402
from maspo_ext.logits.vocab_parallel import vocab_parallel_linear_logprob, vocab_parallel_logprob  # noqa: E402
from maspo_ext.methods import (  # noqa: E402
    RATIO_MODES,
    BapoConfig,
    ClipHigherConfig,
    DacConfig,
    EntropyAdvConfig,
    MaspoConfig,
    PpoConfig,
    SapoConfig,
)
from maspo_ext.modules import LinearPolicyLoss, PolicyLoss  # noqa: E402
from maspo_ext.stats import NUM_STATS, PolicyLossStats, stat_names  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "NUM_STATS",
    "RATIO_MODES",
    "BapoConfig",
    "ClipHigherConfig",
    "DacConfig",
    "EntropyAdvConfig",
    "LinearLossOutput",
    "LinearPolicyLoss",
    "LogprobOutput",
    "MaspoConfig",
    "PolicyLoss",
    "PolicyLossOutput",
    "PolicyLossStats",
    "PpoConfig",
    "SapoConfig",
    "linear_logprob",
    "linear_loss",
    "logprob",
    "policy_loss",
    "stat_names",
    "vocab_parallel_linear_logprob",
    "vocab_parallel_logprob",
]
