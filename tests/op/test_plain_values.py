"""Values that are no tensors, before the dispatcher sees them: wrong types, too large numbers, those of numpy."""

import numpy
import pytest
import torch

import maspo_ext

from .cases import random_batch
from .wrong import packed


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"dual_clip": "yes"}, "dual_clip: expected True or False, got 'yes'"),
        ({"kl_type": None}, "kl_type: expected one of k1, .*, got None"),
        ({"kl_type": 3}, "kl_type: expected one of k1, .*, got 3"),
        ({"ratio_mode": "bapo", "all_reduce_sums": True}, "all_reduce_sums: expected a function of one tensor, got True"),
        ({"dp_size": "2"}, r"dp_size: expected a whole number >= 1, got '2' \(str\)"),
        ({"batch_num_tokens": torch.tensor(7)}, r"batch_num_tokens: .*, got tensor\(7\) \(Tensor\)\. Pass a Python number: batch_num_tokens\.item\(\)\. It is"),
        ({"alpha": torch.tensor(0.3)}, r"alpha: .*\. Pass a Python number: alpha\.item\(\)\. "),
        ({"dp_size": 1.5}, r"dp_size: expected a whole number >= 1, got 1\.5\. It is"),
        ({"batch_num_tokens": 7.25}, r"batch_num_tokens: expected a whole number >= 0, got 7\.25\. It is"),
    ],
    ids=str,
)
def test_no_value_of_the_wrong_type_gets_to_the_dispatcher(wrong, message):
    with pytest.raises((TypeError, ValueError), match=f"maspo_ext: {message}"):
        maspo_ext.policy_loss(**random_batch(4, 6), **wrong)


@pytest.mark.parametrize("mode", ["maspo", "bapo"])
def test_max_seqlen_may_be_of_numpy(mode):
    losses = [maspo_ext.policy_loss(**packed(max_seqlen=kind(5)), ratio_mode=mode).loss for kind in (int, numpy.int64, numpy.int32)]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    sums = []
    for kind in (int, numpy.int64):
        maspo_ext.policy_loss(**packed(max_seqlen=kind(5)), ratio_mode="bapo", all_reduce_sums=sums.append)
    assert torch.equal(*sums)


# Beyond the kernels' numbers, or beyond any float: the dispatcher would answer with its schema.
TOO_LARGE = [
    *(
        ({name: 10**30}, f"{name}: expected a whole number >= {least} and <= 2\\*\\*53, got {10**30}")
        for name, least in (("batch_num_tokens", 0), ("global_batch_size", 0), ("dp_size", 1))
    ),
    ({"batch_num_tokens": 10**400}, "batch_num_tokens: expected a whole number >= 0 and finite, got an int of 1329 bits"),
    ({"alpha": 10**400}, "alpha: expected >= 0 and finite, got an int of 1329 bits"),
    ({"sigma_high": 10**5000}, r"sigma_high: expected >= sigma_base = 1.0 \(inf for no bound\), got an int of 16610 bits"),
    ({"loss_scale_factor": 10**400}, "loss_scale_factor: expected > 0 and finite, got an int of 1329 bits"),
    ({"rollout_is_threshold": 10**400}, "rollout_is_threshold: expected > 0 and finite, got an int of 1329 bits"),
]


@pytest.mark.parametrize("wrong, message", TOO_LARGE, ids=[f"{next(iter(row[0]))}-{i}" for i, row in enumerate(TOO_LARGE)])
def test_a_number_too_large_for_the_kernels(wrong, message):
    with pytest.raises(ValueError, match=f"^maspo_ext: {message}. \\w+"):
        maspo_ext.policy_loss(**random_batch(4, 6), **wrong)


def test_max_seqlen_too_large():
    with pytest.raises(ValueError, match=r"max_seqlen: expected a whole number >= 0 and <= 2\*\*53, got 1180591620717411303424\. It is"):
        maspo_ext.policy_loss(**packed(max_seqlen=2**70))


def test_max_seqlen_is_an_int():
    with pytest.raises(TypeError, match=r"max_seqlen: expected an int, got 5\.0 \(float\)"):
        maspo_ext.policy_loss(**packed(max_seqlen=5.0))


@pytest.mark.parametrize("number", [int, float, numpy.float32, numpy.float64, numpy.int64], ids=lambda kind: kind.__name__)
def test_numbers_of_numpy_and_whole_floats(number):
    batch = random_batch(4, 6)
    batch["ref_log_prob"] = batch["old_log_prob"]
    given = {"batch_num_tokens": 8, "dp_size": 2, "kl_coef": 2, "sigma_base": 2, "loss_scale_factor": 4}
    expected = maspo_ext.policy_loss(**batch, **given)
    actual = maspo_ext.policy_loss(**batch, **{name: number(value) for name, value in given.items()})
    assert torch.equal(actual.loss, expected.loss)
