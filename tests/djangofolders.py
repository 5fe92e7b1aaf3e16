"""Settings of a test's own: put back after it, or in a project with processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

__all__ = ["DjangoFolder", "overridden_settings"]

SETTINGS = """
SECRET_KEY = "of the tests"
USE_TZ = True
INSTALLED_APPS = ["durabledict.ext.django", "shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": FOLDER + "/db.sqlite"}}
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
        "LOCATION": "127.0.0.1:%d" % PORT,
    }
}
"""


class DjangoFolder:
    """A project with the one app `shop`, which has no module of its own.

    :param path: an empty folder
    :param port: of a memcached
    :param settings: lines that are added to its settings

    """

    def __init__(self, path: Path, port: int, settings: str = "") -> None:
        self.path = path
        begin = f"FOLDER = {str(path)!r}\nPORT = {port}\n"
        self.write("settings.py", begin + SETTINGS + textwrap.dedent(settings))
        self.write("shop/__init__.py", "")

    def write(self, name: str, text: str) -> None:
        place = self.path / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(textwrap.dedent(text))

    def run(self, code: str, *, status: int = 0) -> str:
        """Run code in a process, after `django.setup()`, and return all that it printed."""
        begin = "import django; django.setup()\n"
        return self.python("-c", begin + textwrap.dedent(code), status=status)

    def manage(self, *arguments: str, status: int = 0) -> str:
        """Run one of Django's commands, and return all that it printed."""
        return self.python("-m", "django", *arguments, status=status)

    def python(self, *arguments: str, status: int = 0) -> str:
        """Run Python with these arguments, and return all that it printed."""
        done = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            cwd=self.path,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "settings"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, done.stdout
        return done.stdout


class _Overridden:
    """Sets what is set on it in Django's settings, as `override_settings` does."""

    def __init__(self, stack: ExitStack) -> None:
        object.__setattr__(self, "_stack", stack)

    def __setattr__(self, name: str, value: Any) -> None:
        from django.test import override_settings

        self._stack.enter_context(override_settings(**{name: value}))

    def __getattr__(self, name: str) -> Any:
        from django.conf import settings

        return getattr(settings, name)


@contextmanager
def overridden_settings() -> Iterator[Any]:
    """Give Django's settings, of which those that are set meanwhile are put back at the end."""
    with ExitStack() as stack:
        yield _Overridden(stack)
