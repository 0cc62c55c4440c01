"""What the compiled module asks of the libraries around it: nothing that another torch need not have."""

import re
import shutil
import subprocess

import pytest

# By what exports them.
ALLOWED = {
    "torch's stable ABI: C functions": r"(aoti_)?torch_\w+",
    "Python's limited API": r"Py\w+",
    "the C library and the compiler's runtime": r"\w+@(GLIBC|GCC)_[\d.]+",
    "the C++ library": r"\w+@(GLIBCXX|CXXABI)_[\d.]+",
    "nothing, maybe: weak ones": r"_ITM_(de)?registerTMCloneTable|__gmon_start__",
}


def foreign_symbols(library):
    """The undefined symbols of a compiled module that none of these exports."""
    # nm before 2.35 shows a symbol's version only if told.
    command = ["nm", "-D", "--with-symbol-versions", "--undefined-only", library]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    names = [line.split()[-1].replace("@@", "@") for line in listed.splitlines()]
    assert "aoti_torch_abi_version" in names  # the list is no empty one
    return [name for name in names if not re.fullmatch("|".join(ALLOWED.values()), name)]


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm on this machine: it comes with binutils")
def test_the_built_module_needs_no_more_of_torch_than_its_stable_abi():
    from maspo_ext import _C

    assert foreign_symbols(_C.__file__) == []
