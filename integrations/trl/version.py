"""The version of TRL that the integration fits."""

from importlib.metadata import PackageNotFoundError, version

SUPPORTED = "1.16"


def require_supported_trl() -> None:
    """Stop beside another TRL: the trainer's hooks are not its public interface, and may do something else there.

    Raises:
        ImportError: names the version found and the remedy.
    """
    try:
        found = version("trl")
    except PackageNotFoundError:
        found = "none"
    if found.split(".")[:2] != SUPPORTED.split("."):
        raise ImportError(
            f"maspo_ext.integrations.trl: trl: expected version {SUPPORTED}, got {found}. Install it (pip install 'trl=={SUPPORTED}.*'), "
            "or call maspo_ext.PolicyLoss in a trainer of your own."
        )
