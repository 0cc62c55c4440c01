"""The versions of verl that the integration fits."""

from packaging.version import Version

OLDEST = "0.7.0"


def require_supported_verl() -> None:
    """Stop where verl is too old: below 0.7 a policy loss gets no global counts, or returns something else.

    Raises:
        RuntimeError: names the version found and the remedy.
    """
    import verl

    # Pre-releases of 0.7.0 ("0.7.0.dev0") have what is needed; Version would order them before it.
    if Version(verl.__version__).release < Version(OLDEST).release:
        raise RuntimeError(
            f"maspo_ext: verl: expected version {OLDEST} or later, got {verl.__version__} ({verl.__file__}). "
            f"Upgrade it (pip install 'verl>={OLDEST}'), or uninstall maspo_ext to train with verl's own losses."
        )
