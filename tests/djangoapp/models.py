"""Models of every shape that a dict can be over."""

from __future__ import annotations

import uuid
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from django.db import models

if TYPE_CHECKING:
    Column: TypeAlias = models.Field[Any, Any]


class JoinedWithHosts(models.Manager["Guest"]):
    """Fetches the rows' hosts in the same query."""

    def get_queryset(self) -> models.QuerySet[Guest]:
        rows: models.QuerySet[Guest] = super().get_queryset().select_related("host")
        return rows


class PrefetchedHosts(models.Manager["Guest"]):
    """Fetches the rows' hosts in a query after it."""

    def get_queryset(self) -> models.QuerySet[Guest]:
        rows: models.QuerySet[Guest] = super().get_queryset().prefetch_related("host")
        return rows


class Plain(models.Model):
    """What a user of 0.9 had."""

    key: Column = models.CharField(max_length=100, unique=True)
    value: Column = models.TextField()


class Loose(models.Model):
    """Columns that hold NULL, too."""

    key: Column = models.CharField(max_length=100, unique=True, null=True)
    value: Column = models.TextField(null=True)


class PlainProxy(Plain):
    """Another class for the same rows."""

    class Meta:
        proxy = True


class PlainChild(Plain):
    """A class whose instances are rows of `Plain`, and more."""

    note: Column = models.TextField(default="")


class Binary(models.Model):
    """Text of any length to bytes."""

    key: Column = models.TextField(primary_key=True)
    value: Column = models.BinaryField()
    changed: Column = models.DateTimeField(auto_now=True)
    note: Column = models.CharField(max_length=20, default="")


class Document(models.Model):
    """Integers to JSON."""

    number: Column = models.IntegerField(unique=True)
    value: Column = models.JSONField()


class Ticket(models.Model):
    """UUIDs to text."""

    id: Column = models.UUIDField(primary_key=True, default=uuid.uuid4)
    value: Column = models.TextField()


class Guest(models.Model):
    """Texts to a column of their own, in rows that a UUID identifies, as of a date."""

    id: Column = models.UUIDField(primary_key=True, default=uuid.uuid4)
    key: Column = models.CharField(max_length=50, unique=True)
    value: Column = models.TextField()
    since: Column = models.DateField(null=True)
    host: Column = models.ForeignKey("self", null=True, on_delete=models.SET_NULL)

    objects: ClassVar[models.Manager[Guest]] = models.Manager()
    joined = JoinedWithHosts()
    prefetched = PrefetchedHosts()


class Switch(models.Model):
    """Text to a field of its own kind."""

    name: Column = models.SlugField(unique=True)
    enabled: Column = models.BooleanField(default=False)
    ratio: Column = models.FloatField(null=True)


class CaseBlind(models.Model):
    """Keys that the collation joins, on SQLite."""

    key: Column = models.CharField(max_length=50, unique=True, db_collation="NOCASE")
    value: Column = models.TextField()

    class Meta:
        required_db_vendor = "sqlite"


class Repeated(models.Model):
    """Keys that are not unique."""

    key: Column = models.CharField(max_length=50)
    value: Column = models.TextField()


class Stamped(models.Model):
    """A column of keys that a manager leaves some out of."""

    key: Column = models.CharField(max_length=50, unique=True)
    value: Column = models.TextField()
    hidden: Column = models.BooleanField(default=False)

    objects: ClassVar[models.Manager[Stamped]] = models.Manager()


class Measured(models.Model):
    """Fields that do not give back what they were given."""

    key: Column = models.CharField(max_length=50, unique=True)
    price: Column = models.DecimalField(max_digits=20, decimal_places=5, null=True)
    moment: Column = models.DateTimeField(null=True)


class Salted(models.TextField):  # type: ignore[type-arg]  # not subscriptable at run time
    """Text that is written differently each time, as an encrypting field does."""

    _salts = count(1_000_000)

    def get_prep_value(self, value: Any) -> Any:
        return None if value is None else f"{next(self._salts)}{value}"

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return None if value is None else value[7:]


class Secret(models.Model):
    """Values in a field of that kind."""

    key: Column = models.CharField(max_length=50, unique=True)
    value: Column = Salted()


class WithParents(models.Manager["Owned"]):
    """Joins another table to each of its queries, whose rows may be missing."""

    def get_queryset(self) -> models.QuerySet[Owned]:
        rows: models.QuerySet[Owned] = super().get_queryset().select_related("parent")
        return rows


class Owned(models.Model):
    """A row that may belong to another one."""

    key: Column = models.CharField(max_length=50, unique=True)
    value: Column = models.TextField()
    parent: Column = models.ForeignKey("self", null=True, on_delete=models.SET_NULL)

    objects = WithParents()
