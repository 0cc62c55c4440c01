"""Entry point ``maspo`` of the group ``verl.plugins``: importing this module does the registering.

verl loads it in every process (driver and Ray workers) at the end of ``import verl``, so it stays light: verl's
registry of losses is filled when verl itself imports it. verl versions without the entry point group load it through
``VERL_USE_EXTERNAL_MODULES=maspo_ext.integrations.verl.plugin``.
"""

import os
import socket
import sys


def install() -> None:
    """Register the config keys with Hydra and the losses with verl; a second call changes nothing.

    Raises:
        Exception: whatever went wrong, after it was printed with the process it happened in.
    """
    try:
        from . import registration, search_path
        from .versions import require_supported_verl

        require_supported_verl()
        search_path.install()
        registration.install()
    except Exception as error:
        # verl logs what a plugin raises at DEBUG only and goes on without it.
        print(
            f"maspo_ext: the plugin for verl cannot be installed (host {socket.gethostname()}, pid {os.getpid()}, "
            f"{sys.executable}). The keys and losses of maspo_ext are not available here.\nCause: {error!r}",
            file=sys.stderr,
            flush=True,
        )
        raise


install()
