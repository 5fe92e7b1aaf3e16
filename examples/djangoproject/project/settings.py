"""The project's settings; where the rows and the stamp are, the environment may say.

DEMO_DATABASE
    the path of an SQLite file
DEMO_CACHE
    memcached://host:port or redis://host:port/number
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1]

SECRET_KEY = os.environ.get("DEMO_SECRET_KEY", "for this example alone")
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
USE_TZ = True

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "durabledict.ext.django",
    "pages",
]

# Makes the dict in every process of the project, so that each hears of what the admin changes.
DURABLEDICTS = {"flags": "pages.flags.flags"}

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DEMO_DATABASE", FOLDER / "db.sqlite3"),
        "OPTIONS": {"timeout": 20},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# The stamp is here: it has to be a cache that all processes share.
_CACHE = os.environ.get("DEMO_CACHE", "memcached://127.0.0.1:11211")
_KIND, _, _ADDRESS = _CACHE.partition("://")
CACHES = {
    "default": (
        {
            "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
            "LOCATION": _ADDRESS,
        }
        if _KIND == "memcached"
        else {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": _CACHE}
    )
}

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
STATIC_URL = "static/"
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
