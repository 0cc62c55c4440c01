"""Stock verl on a machine without an accelerator: platform, adaptations and a rollout backend.

Everything here is opt-in: it is active only in processes with ``VERL_PLATFORM=cpu`` in their environment, and the
platform never takes part in verl's auto-detection. verl loads :mod:`.plugin` through its ``verl.plugins`` entry point.

What runs (verl 0.9.1): ``verl.trainer.main_ppo`` with the V1 trainer (``sync`` and ``colocate_async``), the FSDP engine
with ``strategy=fsdp2`` over gloo, one rollout replica per rank (``rollout.name=hf_cpu``), checkpoints, validation.

What does not run, and is refused before Ray starts (:mod:`.requirements`):

* a critic (GAE): verl's value model asks for ``flash_attention_2``, which needs a CUDA device;
* ``strategy=fsdp`` (FSDP1): torch's FSDP1 rejects CPU parameters in ``sync_module_states``, and a KL reference would
  not run even without that check. FSDP2 needs less and offers the same;
* ``trainer_mode=separate_async``: it places the rollout on accelerators of its own.

==================================  ====================================================================
:mod:`.plugin`                      what the entry point loads: registers everything below
:mod:`.platform`                    verl's ``PlatformBase`` for the CPU
:mod:`.device_module`               the functions of ``torch.cuda`` that verl calls and ``torch.cpu`` lacks
:mod:`.adaptations`                 the few places in verl that assume an accelerator
:mod:`.requirements`                the settings a CPU run needs, checked with a remedy each
:mod:`.rollout_replica`             driver side of the rollout: starts the servers
:mod:`.rollout_adapter`             trainer side: pushes the weights
:mod:`.rollout_server`              the Ray actor that generates
:mod:`.request_batcher`             joins concurrent requests into batches
:mod:`.generation`                  one batch through ``transformers.generate``
==================================  ====================================================================
"""
