"""The peers of benchmarks/linear.py compute the same, so that their times and memory can be compared."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
if BENCHMARKS not in sys.path:
    sys.path.append(BENCHMARKS)

import linear  # noqa: E402
import linear_peers  # noqa: E402
import memory  # noqa: E402
import peers  # noqa: E402

# Nothing a multiple of a vector or of a chunk; Liger goes over the vocabulary in pieces of 4096.
SIZES = {"rows": 3, "cols": 17, "hidden_size": 37, "vocabulary": 4099}
DTYPE, DEVICE = torch.float32, "cpu"


@pytest.fixture(scope="module")
def batch() -> linear_peers.Batch:
    torch.manual_seed(3)
    return linear_peers.make_batch(**SIZES, dtype=DTYPE, device=DEVICE, masked=0.3)


def in_float64(batch: linear_peers.Batch, mode: str) -> tuple[torch.Tensor, ...]:
    """Loss and gradients, written out."""
    hidden = batch.hidden.detach().double().requires_grad_()
    weight = batch.weight.detach().double().requires_grad_()
    log_probs = (hidden @ weight.T).log_softmax(-1)
    log_prob = log_probs.gather(-1, batch.target[..., None])[..., 0]
    loss = peers.EAGER[mode](log_prob, *(value.double() for value in batch.of_policy()))[0]
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("name", [name for name in linear.names_on(DEVICE) if name != linear.FLOOR])
def test_peer_computes_the_loss_and_its_gradients(name, batch):
    try:
        peer = linear_peers.PEERS[name]()
    except ImportError as error:
        pytest.skip(f"{name}: {error}")
    loss = peer(batch)
    grads = torch.autograd.grad(loss, (batch.hidden, batch.weight))
    expected = in_float64(batch, "ppo" if name.endswith("(grpo)") else "maspo")
    for value, true in zip((loss.detach(), *grads), expected, strict=True):
        scale = float(true.abs().max())
        torch.testing.assert_close(value.double(), true, rtol=0, atol=2e-6 * scale)


def test_the_batch_has_clipped_and_masked_tokens(batch):
    """So that the losses differ in more than their names."""
    log_prob, _ = linear_peers.log_prob_and_entropy(batch.hidden.detach(), batch.weight.detach(), batch.target)
    ratio = (log_prob - batch.old_log_prob).exp()[batch.response_mask.bool()]
    assert (ratio > 1.2).any() and (ratio < 0.8).any() and (batch.response_mask == 0).any()


def test_the_floor_is_the_three_products(batch):
    logits = batch.hidden.detach().flatten(0, 1) @ batch.weight.detach().T
    grad_hidden, grad_weight = linear.call_of(linear.FLOOR, batch)(batch)
    torch.testing.assert_close(grad_hidden, logits @ batch.weight)
    torch.testing.assert_close(grad_weight, logits.T @ batch.hidden.flatten(0, 1))


class TestMemory:
    """What a fresh process says of a call whose memory is known."""

    @pytest.fixture
    def measured(self, tmp_path):
        def of(call: str) -> memory.Memory:
            script = tmp_path / "script.py"
            script.write_text(
                f"import sys; sys.path.append({BENCHMARKS!r})\n"
                "import memory, torch\n"
                "store = []\n"
                f"def call(): {call}\n"
                'memory.tell(memory.measure(call, call, "cpu"))\n'
            )
            return memory.in_fresh_process([str(script)])

        return of

    def test_temporaries_count_and_outputs_do_not(self, measured):
        # 64 MiB in blocks of 1 MiB, which glibc would not unmap by default, and an output of 32 MiB.
        call = "blocks = [torch.ones(2**18) for _ in range(64)]; del blocks; return [torch.ones(2**23)]"
        peak, kept = measured(call)
        assert peak == pytest.approx(32 * linear.MIB, abs=2 * linear.MIB)
        assert kept == pytest.approx(0, abs=2 * linear.MIB)

    def test_what_a_call_keeps_is_told(self, measured):
        peak, kept = measured("store or store.append(torch.ones(2**24)); return []")
        assert peak == pytest.approx(0, abs=2 * linear.MIB)
        assert kept == pytest.approx(64 * linear.MIB, abs=2 * linear.MIB)

    def test_a_script_that_fails_says_why(self, measured):
        with pytest.raises(RuntimeError, match="expected exit status 0, got 1(.|\n)*ValueError: no such call"):
            measured('raise ValueError("no such call")')
