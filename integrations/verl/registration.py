"""Puts the losses into verl's registry, in every process that can need them."""

from types import ModuleType

from . import fused_kernels
from .import_hook import when_imported
from .loss import PolicyLossAdapter
from .model_output import wrap_ppo_loss
from .ratio_modes import FUSED, registry_name


def install() -> None:
    """Register one loss per ``ratio_mode`` once verl imports its registry, and hand them what ``ppo_loss`` is given.

    The backend of verl's fused kernels comes with them. A second call changes nothing.
    """
    when_imported("verl.trainer.ppo.core_algos", register_losses)
    when_imported("verl.workers.utils.losses", wrap_ppo_loss)
    fused_kernels.install()


def register_losses(core_algos: ModuleType) -> None:
    """Register the losses with ``verl.trainer.ppo.core_algos``.

    Raises:
        RuntimeError: another loss has the name already.
    """
    for ratio_mode in FUSED:
        name = registry_name(ratio_mode)
        present = core_algos.POLICY_LOSS_REGISTRY.get(name)
        if present is not None:
            raise RuntimeError(
                f"maspo_ext: verl's policy loss registry: expected no loss named {name!r}, got {present!r}. "
                f"Remove the plugin or the fork of verl that registers it, or uninstall maspo_ext."
            )
        core_algos.register_policy_loss(name)(PolicyLossAdapter(ratio_mode))
