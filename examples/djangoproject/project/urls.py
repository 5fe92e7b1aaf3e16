"""The project's addresses."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path
from pages import views

urlpatterns = [
    path("", views.home, name="home"),
    path("settings/", views.settings, name="settings"),
    path("stats/", views.stats, name="stats"),
    path("admin/", admin.site.urls),
]
