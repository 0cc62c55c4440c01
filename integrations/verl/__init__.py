"""The integration into stock verl, 0.7 and later: config keys, config class and loss adapter.

========================  ==============================================================================
:mod:`.plugin`            what verl's entry point loads; importing it does the registering
:mod:`.search_path`       makes Hydra accept the ``ratio_clip`` keys without a leading ``+``
:mod:`.hydra_config`      the yaml that adds those keys to verl's actor config
:mod:`.ratio_modes`       which values ``ratio_mode`` has, and the name of each in verl's registry
:mod:`.ratio_clip`        the keys as a dataclass, made from ``maspo_ext.methods.RATIO_MODES``, and their errors
:mod:`.policy_loss`       the config class that verl instantiates by ``_target_``; routes ``ratio_mode`` to the loss
:mod:`.actor_config`      what the loss takes from the rest of the actor config, and checks of it as a whole
:mod:`.loss`              the function in verl's registry: calls ``maspo_ext.policy_loss``
:mod:`.model_output`      the entropy and the data-parallel group, which verl does not hand to that function
:mod:`.fused_kernels`     the backend of verl's fused kernels: log-probabilities by ``maspo_ext.linear_logprob``
:mod:`.registration`      puts it there, in every process
:mod:`.distillation`      refuses the one place where verl would use its own PPO loss beside it
:mod:`.versions`          which verl is supported
:mod:`.import_hook`       runs a function when verl imports a module, so that nothing here imports it early
:mod:`.cpu`               stock verl on a machine without an accelerator
========================  ==============================================================================
"""

from importlib import import_module

# Resolved on first use: verl loads .plugin, and so this package, at the end of `import verl`, where verl.workers.config
# (which PolicyLossConfig inherits from) would cost every process seconds.
_HOMES = {"PolicyLossConfig": "policy_loss", "RatioClipConfig": "ratio_clip"}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
