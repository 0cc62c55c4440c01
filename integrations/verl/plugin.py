"""Entry point ``maspo`` of the group ``verl.plugins``: importing this module does the registering.

verl loads it in every process (driver and Ray workers) at the end of ``import verl``, so it stays light: verl's registry
of losses is filled when verl itself imports it. verl versions without the entry point group load it through
``VERL_USE_EXTERNAL_MODULES=maspo_ext.integrations.verl.plugin``.
"""

from . import registration, search_path
from .versions import require_supported_verl

require_supported_verl()
search_path.install()
registration.install()
