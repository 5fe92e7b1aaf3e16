"""What is said where an optional package is missing."""

from __future__ import annotations

import pytest

from durabledict.extras import raise_if_missing


@pytest.mark.parametrize(
    ("package", "module"),
    [("redis", "redis"), ("SQLAlchemy", "sqlalchemy.orm"), ("dogpile.cache", "dogpile")],
)
def test_the_package_and_the_extra_are_named(package: str, module: str) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    with pytest.raises(ImportError, match=f"it needs the package {package}: pip ") as caught:
        raise_if_missing(error, "it needs", package, extra="some")
    assert str(caught.value).endswith(
        f"pip install {package}, or install durabledict with its extra [some]"
    )
    assert caught.value.name == module
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("module", ["six", "redistributed", "durabledict.redisgone", None])
def test_another_module_is_left_to_the_caller(module: str | None) -> None:
    raise_if_missing(ModuleNotFoundError(name=module), "it needs", "redis", extra="redis")
