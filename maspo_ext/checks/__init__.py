"""Checks of what a user passes to the loss, by what is checked.

* ``numbers``: numbers, counts and flags, of any argument
* ``tensors``: type, layout, dtype, device and shape
* ``aggregation``: the aggregation mode and the counts that it divides by
* ``kl``: the KL term
* ``rollout_is``: the bounds of the rollout's importance weights

What goes on from hidden states and logits is checked in ``maspo_ext.logits.checks``, a method's own settings by its config class.
The text of every error is of ``maspo_ext.errors``.
"""
