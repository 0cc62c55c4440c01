"""Tells CMakeLists.txt what setup.py knows: `python -m build_tools.cmake` prints CMake's set() commands."""

from build_tools import extension, flags


def variables(made):
    """The facts of one build, by the name that CMakeLists.txt reads them under."""
    definitions = [f"{name}={value}" for name, value in flags.DEFINITIONS.items()]
    architectures = [*(f"{arch}-real" for arch in flags.GPU_ARCHITECTURES), f"{flags.GPU_ARCHITECTURES[-1]}-virtual"]
    return {
        "MASPO_DEFINITIONS": definitions + ([f"{flags.CUDA_DEFINITION}=1"] if made.nvcc else []),
        "MASPO_CXX_STANDARD": [flags.CXX_STANDARD.removeprefix("c++")],
        "MASPO_WARNINGS": flags.WARNINGS,
        "MASPO_SYSTEM_INCLUDES": [made.torch.include, made.python_include],
        "MASPO_TORCH_LIB": [made.torch.lib],
        "MASPO_TORCH_LIBRARIES": flags.TORCH_LIBRARIES,
        "MASPO_LINK_OPTIONS": flags.LINK_OPTIONS,
        "MASPO_NVCC": [made.nvcc.path] if made.nvcc else [],
        "MASPO_GPU_ARCHITECTURES": architectures,
        "MASPO_SUMMARY": [extension.build_info(made)["summary"].replace("built", "building")],
    }


def main():
    """Prints the variables; bracket arguments take any character of a path."""
    for name, values in variables(extension.commands()).items():
        print(f"set({name} [==[{';'.join(map(str, values))}]==])")


if __name__ == "__main__":
    main()
