"""Puts the losses into verl's registry, in every process that can need them."""

from types import ModuleType

from maspo_ext.config import RATIO_MODES

from .import_hook import when_imported
from .loss import PolicyLossAdapter

_installed = False


def install() -> None:
    """Register one loss per ``ratio_mode`` once verl imports its registry; does nothing the second time."""
    global _installed
    if not _installed:
        _installed = True
        when_imported("verl.trainer.ppo.core_algos", register_losses)


def register_losses(core_algos: ModuleType) -> None:
    """Register the losses with ``verl.trainer.ppo.core_algos``.

    Raises:
        RuntimeError: another loss has the name already.
    """
    for ratio_mode in RATIO_MODES:
        present = core_algos.POLICY_LOSS_REGISTRY.get(ratio_mode)
        if present is not None:
            raise RuntimeError(
                f"maspo_ext: verl's policy loss registry: expected no loss named {ratio_mode!r}, got {present!r}. "
                f"Remove the plugin or the fork of verl that registers it, or uninstall maspo_ext."
            )
        core_algos.register_policy_loss(ratio_mode)(PolicyLossAdapter(ratio_mode))
