"""Runs a script of this folder in processes of its own, one per rank, with stock verl on the CPU."""

import os
import socket

from .. import ranks


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_ranks(count, script, *arguments):
    env = dict.fromkeys((name for name in os.environ if name.startswith("VERL_")), None)
    env |= {"VERL_PLATFORM": "cpu", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks.run_ranks(
        [[script, *arguments]] * count, [env | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    )
