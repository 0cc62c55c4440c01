"""The device that these tests run on, that of tests/op."""

from ..op.conftest import device  # noqa: F401
