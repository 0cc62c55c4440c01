"""From the source tree to a source archive to a wheel, as a user's pip does it; and what is in the wheel."""

import ast
import re
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser

import pytest

from .test_symbols import foreign_symbols

pytestmark = pytest.mark.slow


def pip_wheel(source, folder):
    """Builds a wheel under pip's default isolation; returns its path and pip's whole output."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (wheel,) = folder.glob("*.whl")
    return wheel, done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    from build_tools import flags

    folder = tmp_path_factory.mktemp("sdist")
    code = f"import sys; sys.path.insert(0, '.'); from build_tools import backend; backend.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=flags.ROOT, check=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def built(sdist, tmp_path_factory):
    return pip_wheel(sdist, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel(built):
    with zipfile.ZipFile(built[0]) as archive:
        yield archive


@pytest.fixture(scope="module")
def library(wheel, tmp_path_factory):
    """The compiled module, unpacked."""
    return wheel.extract("maspo_ext/_C.abi3.so", tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def info(wheel):
    """The wheel's own account of what was built."""
    text = wheel.read("maspo_ext/_build_info.py").decode()
    return ast.literal_eval(text[text.index("{") :])


def inspect(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_the_installed_torch_is_used_and_no_other_fetched(built, info):
    import torch

    assert not re.search(r"(Collecting|Downloading) torch\b", built[1])
    assert info["torch_headers"] == torch.__version__


def test_the_result_is_said_in_one_line(built, info):
    assert info["summary"] in built[1]
    assert "\n" not in info["summary"]
    assert ("CUDA (sm_80, sm_90, sm_100, PTX)" if info["cuda"] else "CPU only") in info["summary"]


def test_the_sources_are_told_by_their_digest(info, root):
    """Through the archive, which so has them all: by it benchmarks/built_wheel.py knows a wheel of this tree."""
    from build_tools import sources

    assert info["sources"] == sources.digest(root)


def test_one_wheel_for_every_python_from_3_10_on(built, wheel):
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert built[0].name == f"maspo_ext-0.1.0-cp310-abi3-{platform}.whl"
    assert [name for name in wheel.namelist() if name.endswith(".so")] == ["maspo_ext/_C.abi3.so"]


def test_every_module_and_data_file_of_the_package_is_in(wheel, root):
    # integrations/ is linked into the package: in the wheel it is a real folder.
    expected = {"maspo_ext/_build_info.py", "maspo_ext/_C.abi3.so"}
    for folder, prefix in ((root / "maspo_ext", "maspo_ext"), (root / "integrations", "maspo_ext/integrations")):
        for suffix in (".py", ".yaml", ".json", ".typed"):
            expected |= {f"{prefix}/{path.relative_to(folder)}" for path in folder.rglob(f"*{suffix}")}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == expected
    assert any(name.startswith("maspo_ext/integrations/verl/") for name in packed)


def test_metadata(wheel):
    metadata = Parser().parsestr(wheel.read("maspo_ext-0.1.0.dist-info/METADATA").decode())
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert [line for line in metadata.get_all("Requires-Dist") if "extra" not in line] == ["torch>=2.11"]
    assert set(metadata.get_all("Provides-Extra")) == {"verl", "trl", "cupy", "test"}
    entry_points = wheel.read("maspo_ext-0.1.0.dist-info/entry_points.txt").decode()
    assert entry_points.split() == [
        *("[verl.plugins]", "maspo", "=", "maspo_ext.integrations.verl.plugin"),
        *("maspo_cpu", "=", "maspo_ext.integrations.verl.cpu.plugin"),
    ]


def test_only_stable_symbols_are_used(library):
    assert foreign_symbols(library) == []


def test_the_cuda_runtime_is_inside(library, info):
    needed = re.findall(r"NEEDED.*\[(.+)\]", inspect("readelf", "-d", library))
    assert "libtorch_cpu.so" in needed
    assert [name for name in needed if "cuda" in name or name.startswith("libpython")] == []
    assert (".nv_fatbin" in inspect("readelf", "-SW", library)) is info["cuda"]
    exported = inspect("nm", "-D", "--defined-only", library)
    assert "PyInit__C" in exported
    assert not re.search(r"\b_?_?cuda[A-Z]", exported)


def test_a_module_that_left_the_source_tree_leaves_the_wheel(root, tmp_path):
    stale = root / "build" / "lib.stale" / "maspo_ext" / "gone.py"
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.touch()
    pip_wheel(root, tmp_path)
    assert not stale.exists()
