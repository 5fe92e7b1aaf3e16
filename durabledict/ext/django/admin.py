"""The admin of `Setting`: lists keys and safe renderings of values; edits JSON alone.

A value is never unpickled here, unless it is made of the classes that the setting
`DURABLEDICT_ADMIN_ALLOW` lists. Entries are added by the dict, which knows the encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.core.exceptions import ValidationError

from ... import modelsignals
from ...basicencodings import JSONEncoding
from .models import Setting
from .rendering import is_json, shown
from .settingsdict import SettingsDict

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from django.http import HttpRequest

    SettingModelForm = forms.ModelForm[Setting]
    SettingModelAdmin = admin.ModelAdmin[Setting]
else:
    SettingModelForm = forms.ModelForm
    SettingModelAdmin = admin.ModelAdmin

__all__ = ["SettingAdmin", "SettingForm"]

#: How many characters of a value the list shows, and the page of one entry.
IN_LIST = 100
IN_PAGE = 5000


class SettingForm(SettingModelForm):
    """Edits a value that is JSON; it is stored as `JSONEncoding` writes it."""

    class Meta:
        model = Setting
        fields = ("value",)

    def clean_value(self) -> str:
        """Return the JSON in the form in which it is stored.

        :raises django.core.exceptions.ValidationError: it is not JSON

        """
        try:
            return JSONEncoding.encode(JSONEncoding.decode(self.cleaned_data["value"]))
        except Exception as error:
            raise ValidationError(f"This is not JSON: {error}") from error


@admin.register(Setting)
class SettingAdmin(SettingModelAdmin):
    """Lists, shows and removes entries, and edits those that are JSON."""

    form = SettingForm
    list_display = ("keyspace", "key", "in_list")
    list_filter = ("keyspace",)
    search_fields = ("keyspace", "key")
    ordering = ("keyspace", "key")

    @admin.display(description="value")
    def in_list(self, setting: Setting) -> str:
        """Return what the list shows of a value."""
        return shown(setting.value, _allowed(), IN_LIST)

    @admin.display(description="value")
    def in_page(self, setting: Setting) -> str:
        """Return what the page of one entry shows of a value that cannot be edited."""
        return shown(setting.value, _allowed(), IN_PAGE)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: the encoding of a keyspace is known to its dict."""
        return False

    def get_fields(self, request: HttpRequest, obj: Setting | None = None) -> tuple[str, ...]:
        """Return the value as a field where it is JSON, and else as a rendering."""
        return "keyspace", "key", "value" if obj is not None and is_json(obj.value) else "in_page"

    def get_readonly_fields(
        self, request: HttpRequest, obj: Setting | None = None
    ) -> tuple[str, ...]:
        """Return all but JSON values."""
        return "keyspace", "key", "in_page"

    def save_model(self, request: HttpRequest, obj: Setting, form: Any, change: bool) -> None:
        """Save the value alone, and only if it was edited: another process may have written it."""
        if "value" in form.changed_data:
            with _heard([obj.keyspace], obj._state.db):
                obj.save(update_fields=["value"])

    def delete_model(self, request: HttpRequest, obj: Setting) -> None:
        """Remove one entry."""
        with _heard([obj.keyspace], obj._state.db):
            obj.delete()

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Setting]) -> None:
        """Remove several entries."""
        keyspaces = set(queryset.order_by().values_list("keyspace", flat=True))
        with _heard(keyspaces, queryset.db):
            queryset.delete()


def _allowed() -> Any:
    return getattr(settings, "DURABLEDICT_ADMIN_ALLOW", ())


@contextmanager
def _heard(keyspaces: Iterable[str], alias: str | None) -> Iterator[None]:
    """Have a dict of each keyspace in this process, whose signals tell readers of the write.

    A dict that only other processes use is told of through the cache that is Django's default.

    """
    known = {
        durable.keyspace
        for durable in modelsignals.living()
        if isinstance(durable, SettingsDict) and durable._alias == alias
    }
    kept = [SettingsDict[Any, Any](name, using=alias) for name in keyspaces if name not in known]
    yield
    kept.clear()
