"""Declares the compiled module; everything else is in pyproject.toml, and the build itself in build_tools/."""

from setuptools import setup

from build_tools.extension import BuildExtension, extension

setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
