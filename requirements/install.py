"""Makes a virtual environment and installs a lock file into it: `python install.py FOLDER LOCK [EXTRA_INDEX_URL]`.

Which package index serves the packages is pip's own configuration (PIP_* variables, pip.conf). Running it again on a
finished environment only installs what changed in the lock. An environment whose first installation was interrupted is
made anew, since a half-written package can look installed.
"""

import os
import subprocess
import sys

LOCK_FOLDER = os.path.dirname(os.path.abspath(__file__))
OLDEST, TOO_NEW = (3, 10), (3, 13)  # verl 0.9.1 allows no later Python


def stop(what, expected, got, remedy):
    sys.exit(f"\nmaspo_ext: {what}\n  expected: {expected}\n  got:      {got}\n  remedy:   {remedy}")


def check_python(version=sys.version_info):
    """Stops if this Python cannot carry the environment."""
    if not OLDEST <= tuple(version[:2]) < TOO_NEW:
        stop(
            "this Python does not fit the pinned environment",
            "Python 3.10, 3.11 or 3.12 (verl 0.9.1 runs on these)",
            f"Python {version[0]}.{version[1]} ({sys.executable})",
            "name another one: make PYTHON=python3.11 ...",
        )
    try:
        import ensurepip  # noqa: F401  (Debian and Ubuntu ship Python without it)
        import venv  # noqa: F401
    except ImportError as error:
        stop("Python's venv module is not complete", "modules venv and ensurepip", error, "Debian, Ubuntu: apt install python3-venv")


def main(folder, lock, extra_index=None):
    check_python()
    python = os.path.join(folder, "bin", "python")
    unfinished = os.path.join(folder, "unfinished")
    print(
        f"maspo_ext: installing {os.path.relpath(lock)} into {folder}. The first time that takes minutes, in which pip says nothing "
        "(.venv: 2.4 GB with a CPU build of torch)",
        flush=True,
    )
    if os.path.exists(unfinished) or not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        open(unfinished, "w").close()
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--progress-bar", "off"]
    index = ["--extra-index-url", extra_index] if extra_index else []
    subprocess.run([*pip, "-r", os.path.join(LOCK_FOLDER, "build.txt")], check=True)
    subprocess.run([*pip, *index, "-r", lock], check=True)
    if os.path.exists(unfinished):
        os.remove(unfinished)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the command has said why
