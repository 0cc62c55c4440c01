"""Beside another TRL the door stays shut, and says so."""

import importlib
import importlib.metadata
import sys

import pytest


@pytest.mark.parametrize("found", ["1.15.2", "1.17.0", "2.0", None])
def test_another_version_is_refused(found, monkeypatch):
    def version(package):
        assert package == "trl"
        if found is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    for name in [name for name in sys.modules if name.startswith("maspo_ext.integrations.trl")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=rf"integrations\.trl: trl: expected version 1\.16, got {found or 'none'}\. Install it"):
        importlib.import_module("maspo_ext.integrations.trl")

