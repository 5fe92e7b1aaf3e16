"""A page with a feature flag, and the page on which it is switched."""

from __future__ import annotations

import json
import os

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render

from .flags import flags


def home(request: HttpRequest) -> HttpResponse:
    """Show the new design or the old one, as the flag says."""
    page = {"new_design": flags.get("new_design", False), "title": flags.get("title", "Welcome")}
    return render(request, "pages/home.html", {**page, "process": os.getpid()})


def settings(request: HttpRequest) -> HttpResponse:
    """Show all settings, and change one. In a project of one's own: for staff only."""
    error = ""
    name = request.POST.get("name", "")
    if request.method == "POST":
        try:
            if "remove" in request.POST:
                flags.pop(name, None)
            else:
                flags[name] = json.loads(request.POST.get("value", ""))
            return redirect("settings")
        except ValueError as problem:  # no JSON, or a name that is too long
            error = str(problem)
    shown = [(key, json.dumps(value)) for key, value in sorted(flags.items())]
    context = {"settings": shown, "error": error, "name": name, "process": os.getpid()}
    return render(request, "pages/settings.html", context, status=400 if error else 200)


def stats(request: HttpRequest) -> JsonResponse:
    """Tell how often this process compared stamps, and how often that led to a load."""
    counts = {"comparisons": flags.stats.comparisons, "loads": flags.stats.reloads}
    return JsonResponse({"process": os.getpid(), **counts})
