"""What an import says where an optional package is missing: its name, and the extra that has it."""

from __future__ import annotations

__all__ = ["raise_if_missing"]


def raise_if_missing(
    error: ModuleNotFoundError, who_needs: str, package: str, *, extra: str
) -> None:
    """Raise an error that names the remedy, if it is this package that was not found.

    Another module that is missing is another matter: the caller raises the error as it is then.

    :param who_needs: the beginning of the message: "RedisDict needs"
    :param package: as pip knows it; its module has that name in small letters, up to a dot
    :param extra: of durabledict, which installs it
    :raises ImportError: that package is missing

    """
    missing = (error.name or "").partition(".")[0]
    if missing != package.partition(".")[0].lower():
        return
    raise ImportError(
        f"{who_needs} the package {package}: pip install {package}, or install durabledict with "
        f"its extra [{extra}]",
        name=error.name,
    ) from error
