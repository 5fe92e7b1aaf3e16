"""The ready model of `SettingsDict`: a row an entry."""

from __future__ import annotations

from typing import Any

from django.db import models

__all__ = ["Setting"]


class Setting(models.Model):
    """One entry of one dict; the dict writes `key` and `value` in forms of its own."""

    keyspace: models.CharField[str, str] = models.CharField(max_length=100)
    key: models.CharField[str, str] = models.CharField(max_length=255)
    value: models.TextField[str, str] = models.TextField()

    class Meta:
        constraints = (
            # The keyspace first: this is the index by which a dict finds its rows.
            models.UniqueConstraint(fields=("keyspace", "key"), name="durabledict_setting_key"),
        )

    #: Where the row was when it was read: a save that moves it is heard in both places.
    _loaded_keyspace: str | None = None

    @classmethod
    def from_db(cls, *arguments: Any, **named: Any) -> Setting:
        """Make an instance of a row that was read."""
        setting: Setting = super().from_db(*arguments, **named)
        setting._loaded_keyspace = setting.__dict__.get("keyspace")
        return setting

    def __str__(self) -> str:
        return f"{self.keyspace}: {self.key}"
