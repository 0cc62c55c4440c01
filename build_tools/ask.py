"""Asks a compiler about itself."""

import subprocess

from build_tools.errors import BuildError


def ask(name, command, remedy):
    """What it prints, on either stream; `name` and `remedy` are for the error of one that does not run."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    except OSError as error:
        got = str(error)
    else:
        if done.returncode == 0:
            return done.stdout
        got = f"exit status {done.returncode}: {done.stdout.strip()}"
    raise BuildError(f"{name} does not run", expected=f"an answer from: {' '.join(map(str, command))}", got=got, remedy=remedy)
