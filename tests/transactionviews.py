"""Views that run in a transaction, under ATOMIC_REQUESTS: what they do, a test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from django.http import HttpResponse
from django.urls import path

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = ["body", "urlpatterns"]

#: What the view does; the last one.
body: list[Callable[[], object]] = []


def view(request: HttpRequest) -> HttpResponse:
    """Do what the test wants to be done in a request."""
    body[-1]()
    return HttpResponse("done")


urlpatterns = [path("", view)]
