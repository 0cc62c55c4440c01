"""What the installed verl has, by its release: the tests of the loss and of its keys run beside older ones, too."""

import verl
from packaging.version import Version

RELEASE = Version(verl.__version__).release

AGG_MODES = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
if RELEASE >= (0, 9):
    AGG_MODES.append("token-sum")

# Those in which verl's own losses are what they are in 0.9.1: verl 0.7.0 does not divide the last by the sequences.
VERLS_AGG_MODES = [mode for mode in AGG_MODES if RELEASE >= (0, 7, 1) or mode != "seq-mean-token-sum-norm"]

# Before, the engines handed the loss padded tensors.
NESTED_DATA = RELEASE >= (0, 8)
HAS_METRIC = RELEASE >= (0, 7, 1)
# Before, the engine was chosen by the name of the config alone, and the configs of experimental trainers had to be read from verl's
# repository.
HAS_MODEL_ENGINE = RELEASE >= (0, 8)
HAS_DISTILLATION = RELEASE >= (0, 8)
# Before, the config class refused what the bypass mode sets.
HAS_BYPASS_MODE = RELEASE >= (0, 7, 1)
ENGINE_SHIFTS_LABELS = RELEASE >= (0, 8)
