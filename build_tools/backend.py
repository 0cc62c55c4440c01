"""The PEP 517 build backend: setuptools', which also asks for torch or nvcc where the machine has none.

A build under pip's isolation compiles against the headers of the torch that the user has (see torch_headers.py), so it
downloads no second torch, and the result works with every later torch anyway: it uses the stable ABI alone.
"""

import shutil
from importlib.metadata import PackageNotFoundError, version

from build_tools.errors import BuildError

OLDEST_SETUPTOOLS = 77  # reads `license = "Apache-2.0"`, and makes wheels by itself


def _require_setuptools():
    """Without build isolation nobody has checked pyproject's `requires`, and a fresh venv's setuptools is old or absent."""
    try:
        found = version("setuptools")
    except PackageNotFoundError:
        found = None
    if found is None or int(found.split(".")[0]) < OLDEST_SETUPTOOLS:
        raise BuildError(
            "setuptools is missing or too old",
            expected=f"setuptools>={OLDEST_SETUPTOOLS}",
            got=f"setuptools {found}" if found else "no setuptools",
            remedy=f"pip install 'setuptools>={OLDEST_SETUPTOOLS}', or drop --no-build-isolation",
        )


_require_setuptools()

from setuptools import build_meta  # noqa: E402
from setuptools.build_meta import (  # noqa: E402, F401  (the hooks that stay as they are)
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from build_tools import decide, extension, flags  # noqa: E402


def get_requires_for_build_wheel(config_settings=None):
    """Asked by pip before it builds a wheel."""
    ours = decide.requirements(*extension.machine())  # first: its errors need no log of setuptools above them
    return build_meta.get_requires_for_build_wheel(config_settings) + ours


def get_requires_for_build_editable(config_settings=None):
    """Asked by pip before an editable install."""
    ours = decide.requirements(*extension.machine())  # first: its errors need no log of setuptools above them
    return build_meta.get_requires_for_build_editable(config_settings) + ours


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """setuptools', from an empty staging folder: it would pack modules that have left the source tree since."""
    for stale in flags.ROOT.glob("build/lib*"):
        shutil.rmtree(stale)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


build_editable = build_meta.build_editable
