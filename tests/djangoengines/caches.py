"""Django's cache over pymemcache, whose connections end with their threads."""

from __future__ import annotations

from django.core.cache.backends import memcached


class PyMemcacheCache(memcached.PyMemcacheCache):
    """Closes what a thread left open, when the thread has ended."""

    def __del__(self) -> None:
        self.close()
