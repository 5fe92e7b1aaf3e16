"""The ready model of `SettingsDict`: a row an entry."""

from __future__ import annotations

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

    def __str__(self) -> str:
        return f"{self.keyspace}: {self.key}"
