"""Makes Hydra accept the ``ratio_clip`` keys in every config that includes verl's actor config."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import verl
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from .ratio_clip import keys

_PROVIDER = "maspo_ext"
_OURS = f"pkg://{__package__}.hydra_config"
_VERL_CONFIG = "pkg://verl.trainer.config"
# From here verl's own actor.yaml is config/actor/actor, a name that ours does not hide.
_VERL_TRAINER = "pkg://verl.trainer"
_MAIN = SearchPathQuery(provider="main", path=None)


def install() -> None:
    """Register the search path and the keys with Hydra; a second call changes nothing."""
    # Not struct: an unknown key under ratio_clip then reaches RatioClipConfig, whose error lists the valid ones.
    ConfigStore.instance().store(
        group="maspo_ext", name="ratio_clip", node=OmegaConf.create(keys(), flags={"struct": False}), provider=_PROVIDER
    )
    Plugins.instance().register(ActorConfigSearchPath)


class ActorConfigSearchPath(SearchPathPlugin):
    """Puts our ``actor/actor.yaml``, which includes verl's, before verl's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        main = search_path.find_first_match(_MAIN)
        if main >= 0 and _is_verl_config(search_path.get_path()[main].path):
            search_path.prepend(_PROVIDER, _OURS, _MAIN)
        else:
            # A recipe's own config directory keeps precedence over ours; verl's directory comes after it.
            search_path.append(_PROVIDER, _OURS, _MAIN)
        search_path.append(_PROVIDER, _VERL_TRAINER)


def _is_verl_config(path: str) -> bool:
    """Whether an element of the search path (``pkg://``, ``file://`` or a plain path) is verl's config directory."""
    url = urlparse(path)
    if url.scheme == "pkg":
        return path == _VERL_CONFIG
    return Path(url.path).resolve() == (Path(verl.__file__).parent / "trainer" / "config").resolve()
