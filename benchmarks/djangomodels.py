"""The tables of the benchmarks' Django project; imported when Django is configured.

What is written by hand goes to tables of its own, so that as many dead rows are in the one as in
the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from django.db import models

if TYPE_CHECKING:
    Column: TypeAlias = models.Field[Any, Any]

__all__ = ["MODELS", "Binary", "BinaryByHand", "TextByHand"]

# Not in INSTALLED_APPS: no migrations are looked for.
APP = "benchmarks"


class Binary(models.Model):
    """Under a `ModelDict`: pickles as they are."""

    key: Column = models.CharField(max_length=255, unique=True)
    value: Column = models.BinaryField()

    class Meta:
        app_label = APP


class BinaryByHand(models.Model):
    """The same."""

    key: Column = models.CharField(max_length=255, unique=True)
    value: Column = models.BinaryField()

    class Meta:
        app_label = APP


class TextByHand(models.Model):
    """As the table of `SettingsDict`: pickles in base64, among those of other keyspaces."""

    keyspace: Column = models.CharField(max_length=100)
    key: Column = models.CharField(max_length=255)
    value: Column = models.TextField()

    class Meta:
        app_label = APP
        constraints = [
            models.UniqueConstraint(fields=("keyspace", "key"), name="benchmarks_textbyhand_key")
        ]


MODELS: tuple[type[models.Model], ...] = (Binary, BinaryByHand, TextByHand)
