"""The app's configuration, which Django finds by the name in INSTALLED_APPS."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

__all__ = ["DurabledictConfig"]


class DurabledictConfig(AppConfig):
    """Makes the dicts of the setting `DURABLEDICTS` in every process of the project."""

    name = "durabledict.ext.django"
    label = "durabledict"
    verbose_name = "Durable dicts"
    # Said here, so that a project's own choice asks for no migration of this app.
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Make the dicts, which connects their signals, and register the checks.

        Neither a database nor a cache is asked.

        :raises django.core.exceptions.ImproperlyConfigured: the setting cannot be understood

        """
        from .checks import check_admin, check_dicts
        from .configured import durabledicts

        checks.register(check_dicts, "durabledict")
        checks.register(check_admin, "durabledict")
        durabledicts.make_all()
