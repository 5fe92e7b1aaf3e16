"""The settings of the tests' Django project, in this process and in those that tests start.

`tests/djangoproject.py` starts the servers and leaves their addresses in the environment.
"""

from __future__ import annotations

import json
import os
from typing import Any

_ADDRESSES: dict[str, Any] = json.loads(os.environ["DURABLEDICT_TESTS"])

SECRET_KEY = "of the tests"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "tests.djangoapp.urls"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.admin",
    "durabledict.ext.django",
    "tests.djangoapp",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

_POSTGRES = {
    **_ADDRESSES["postgres"],
    "ENGINE": "tests.djangoengines.postgresql",
}
DATABASES: dict[str, dict[str, Any]] = {
    "default": _POSTGRES,
    # The same database, in transactions of another kind.
    "repeatable": {
        **_POSTGRES,
        "OPTIONS": {**_POSTGRES.get("OPTIONS", {}), "isolation_level": 3},
    },
    "sqlite": {
        "ENGINE": "tests.djangoengines.sqlite3",
        "NAME": _ADDRESSES["sqlite"],
        "OPTIONS": {"timeout": 30},
    },
}

_MEMCACHED = f"127.0.0.1:{_ADDRESSES['memcached']}"
_BACKENDS = "django.core.cache.backends"
CACHES: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "tests.djangoengines.caches.PyMemcacheCache", "LOCATION": _MEMCACHED},
    "redis": {
        "BACKEND": f"{_BACKENDS}.redis.RedisCache",
        "LOCATION": f"redis://127.0.0.1:{_ADDRESSES['redis']}",
    },
    "locmem": {"BACKEND": f"{_BACKENDS}.locmem.LocMemCache"},
    "dummy": {"BACKEND": f"{_BACKENDS}.dummy.DummyCache"},
    "files": {"BACKEND": f"{_BACKENDS}.filebased.FileBasedCache", "LOCATION": _ADDRESSES["files"]},
    "database": {"BACKEND": f"{_BACKENDS}.db.DatabaseCache", "LOCATION": "cache_table"},
}
