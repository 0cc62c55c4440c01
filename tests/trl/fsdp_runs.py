"""The runs of test_example.py under FSDP2, of one rank: python fsdp_runs.py FOLDER, started by accelerate for each."""

import sys
from pathlib import Path

import runs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

MODELS = []


def shard_on_a_cpu() -> None:
    """Have accelerate take FSDP where it is asked for; by itself it knows it on accelerators only, and takes DDP on a CPU."""
    initialize = AcceleratorState.__init__

    def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
        initialize(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            # A later AcceleratorState takes it from there.
            PartialState._shared_state["distributed_type"] = self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = with_fsdp


def noted(build):
    """A build_model that leaves the model here."""

    def build_and_note(tokenizer):
        MODELS.append(build(tokenizer))
        return MODELS[-1]

    return build_and_note


if __name__ == "__main__":
    shard_on_a_cpu()
    with runs.other_model(noted):
        runs.train_as_trl_does(Path(sys.argv[1]), "fsdp", beta=0.0)  # the reference would be another model, from the disk
    assert len(MODELS) == 3
    for model in MODELS:
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
