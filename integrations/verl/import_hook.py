"""Run a callback, once, right after a module is first imported, without importing it now."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Callable
from types import ModuleType

_requested: set[tuple[str, Callable[[ModuleType], None]]] = set()


def when_imported(name: str, callback: Callable[[ModuleType], None]) -> None:
    """Call ``callback(module)`` once ``name`` is imported; at once if it already is.

    Asking for the same again changes nothing: plug-ins are installed from more than one place.
    An exception in the callback propagates to whoever imports ``name``: a failed adaptation must not go unnoticed. Where
    that, or the module itself, fails, the next import, or where it is imported the next request, calls it again.
    """
    if (name, callback) in _requested:
        return
    _requested.add((name, callback))
    module = sys.modules.get(name)
    if module is None:
        sys.meta_path.insert(0, _Finder(name, callback))
        return
    try:
        callback(module)
    except BaseException:
        _requested.discard((name, callback))
        raise


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module through the other finders and wraps its loader."""

    def __init__(self, name: str, callback: Callable[[ModuleType], None]):
        self._name = name
        self._callback = callback
        self._thread = threading.local()

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self._name or getattr(self._thread, "asks_the_others", False):
            return None
        self._thread.asks_the_others = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._thread.asks_the_others = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._imported)
        return spec

    def _imported(self, module: ModuleType) -> None:
        self._callback(module)
        # Not when it was found: whoever only looks for a module (importlib.util.find_spec) does not import it.
        sys.meta_path.remove(self)


class _Loader(importlib.abc.Loader):
    """Executes the module with its own loader, then the callback."""

    def __init__(self, loader: importlib.abc.Loader, callback: Callable[[ModuleType], None]):
        self._loader = loader
        self._callback = callback

    def __getattr__(self, attribute):
        return getattr(self._loader, attribute)  # get_source, get_data, ...: tracebacks and resources keep working

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._callback(module)
