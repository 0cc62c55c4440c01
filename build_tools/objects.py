"""Compiles in parallel, and only what changed since the last time."""

import os
import shlex
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from build_tools.errors import BuildError

HEADERS = (".h", ".cuh")


def max_jobs(environ=os.environ):
    """How many compilers run at once: $MAX_JOBS, or up to four."""
    text = environ.get("MAX_JOBS", "")
    if not text:
        return min(os.cpu_count() or 1, 4)
    if not text.isdecimal() or int(text) < 1:
        raise BuildError("MAX_JOBS is no number of jobs", expected="a whole number from 1 on", got=repr(text), remedy="correct or unset it")
    return int(text)


def compile_all(sources, command_of, folder, *, csrc, toolchain, jobs):
    """Brings the object of every source up to date; returns the objects.

    `toolchain` names the versions behind the commands (torch's headers, the compilers): they can change in the same folder.
    """
    newest_header = max((path.stat().st_mtime_ns for path in csrc.rglob("*") if path.suffix in HEADERS), default=0)

    def compile_one(source):
        target = folder / source.relative_to(csrc).with_suffix(source.suffix + ".o")
        command = command_of(source)
        recipe = f"{toolchain}\n{shlex.join(command)}\n"
        if not _is_current(target, recipe, max(newest_header, source.stat().st_mtime_ns)):
            _compile(command, target, recipe)
        return target

    with ThreadPoolExecutor(jobs) as pool:
        # Submitted one by one, so that the first error does not wait for the rest of the queue.
        futures = [pool.submit(compile_one, source) for source in sources]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def run(command, doing):
    """Runs a compiler; its own words are the explanation of a failure."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    except OSError as error:
        raise _failed(doing, command, str(error)) from error
    if done.returncode != 0:
        raise _failed(doing, command, f"exit status {done.returncode}\n{done.stdout}")
    if done.stdout:
        print(done.stdout, flush=True)  # warnings


def _failed(doing, command, got):
    return BuildError(
        doing,
        expected=f"success of: {shlex.join(command)}",
        got=got,
        remedy="see the compiler's first message above; C++17 is needed (gcc 9, clang 10 or newer), and a gcc that nvcc supports",
    )


def _recipe_file(target):
    return target.with_suffix(".recipe")


def _is_current(target, recipe, newest_input):
    known = _recipe_file(target)
    return (
        target.is_file() and target.stat().st_mtime_ns > newest_input and known.is_file() and known.read_text() == recipe
    )


def _compile(command, target, recipe):
    target.parent.mkdir(parents=True, exist_ok=True)
    # Of its own name and renamed when complete: neither an interruption nor a second build leaves half an object.
    partial = Path(f"{target}.{os.getpid()}")
    started = time.time_ns()
    try:
        run([*command, "-o", str(partial)], f"compiling {target.stem} failed")
        # As old as its inputs were read: a source edited meanwhile is newer than the object.
        os.utime(partial, ns=(started, started))
        # Whatever interrupts these, there is no recipe beside an object that was not made by it.
        _recipe_file(target).unlink(missing_ok=True)
        partial.replace(target)
        _recipe_file(target).write_text(recipe)
    finally:
        partial.unlink(missing_ok=True)
