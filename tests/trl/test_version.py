"""Beside another TRL the integration refuses to be imported, and says why."""

import importlib
import importlib.metadata
import sys

import pytest

import maspo_ext  # noqa: F401  now, since what torch imports asks for versions, too


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

