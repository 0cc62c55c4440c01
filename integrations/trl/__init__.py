"""The integration into TRL 1.16: its GRPO trainer with our losses.

==================  ============================================================================================
:mod:`.trainer`     ``PolicyLossTrainer``, from TRL's log-probabilities; ``LinearPolicyLossTrainer``, without logits
:mod:`.head`        what a language model's head is given
:mod:`.version`     which TRL is supported
==================  ============================================================================================
"""

from .version import require_supported_trl

require_supported_trl()

from .trainer import LinearPolicyLossTrainer, PolicyLossTrainer  # noqa: E402

__all__ = ["LinearPolicyLossTrainer", "PolicyLossTrainer"]
