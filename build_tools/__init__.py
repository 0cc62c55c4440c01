"""How maspo_ext is built: what is on the machine, what to build from it, and the commands that do it.

    torch_headers.py  where the user's torch is, without importing it
    nvcc.py           where a CUDA compiler is, and the toolkit it belongs to
    ask.py            what a compiler says of itself
    decide.py         MASPO_CUDA, torch and nvcc -> CPU build, CUDA build, fetch a compiler, or an error
    flags.py          the compile and link commands
    errors.py         what is said where it cannot be built
    objects.py        runs them in parallel, and only where something changed
    sources.py        the sources as one number, by which a wheel is known to be of this tree
    extension.py      setuptools' build_ext, made of the above
    backend.py        the PEP 517 backend: asks for torch or nvcc only if they are missing
    cmake.py          tells CMakeLists.txt the same facts
"""
