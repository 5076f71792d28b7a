"""Builds the site: its routes and who may ask for them, its headers, and the one place where errors become pages."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from flask import Flask, Response, g, render_template, request
from flask.typing import ResponseReturnValue
from jinja2 import StrictUndefined
from werkzeug.exceptions import HTTPException

from appliance.admin.access import Access, Door, install
from appliance.admin.pages import Pages
from appliance.admin.site import Site
from appliance.domain.errors import StorageError, TransitionError, UnknownStudyError
from appliance.telemetry import logger_for

__all__ = ["Site", "create_app"]

LARGEST_FORM = 16 * 1024
"""Bytes of a request's body; the largest form is the one for a password."""
REFRESH_SECONDS = 5

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""Nothing but this site's own files; no inline script, no inline style, no evaluated string."""
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}

_PROBLEMS = {
    400: ("That form is no longer valid", "Go back, reload the page and try again."),
    403: ("That is for administrators", "Log in as an administrator."),
    404: ("There is no such page", "It may have moved; the list of studies is the way in."),
    405: ("That can't be done at this address", "Use the buttons of the pages."),
    409: ("The study is not in a state for that", "Reload its page to see where it stands now."),
    413: ("That is too much for a form", "Send less."),
    500: ("Something went wrong here", "The log of the web daemon says what. Try again, or tell the administrator."),
    503: ("The appliance can't read or write its records", "The log of the web daemon says why. Look at the disk."),
}


@dataclass(frozen=True, slots=True)
class Route:
    """One address: who answers it and who may ask."""

    rule: str
    name: str
    view: Callable[..., ResponseReturnValue]
    access: Access
    methods: tuple[str, ...] = ("GET",)


def create_app(site: Site) -> Flask:
    """Build the site from what it is handed; nothing is opened or started here."""
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=site.secret_key,
        SESSION_COOKIE_NAME="insite",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        SESSION_COOKIE_SECURE=site.secure_cookie,
        MAX_CONTENT_LENGTH=LARGEST_FORM,
        MAX_FORM_MEMORY_SIZE=LARGEST_FORM,
    )
    access: dict[str, Access] = {"static": Access.PUBLIC}
    door, pages = Door(site, access), Pages(site)
    for route in _routes(door, pages):
        access[route.name] = route.access
        app.add_url_rule(route.rule, route.name, route.view, methods=route.methods)
    install(app, door)
    app.after_request(_harden)
    app.register_error_handler(Exception, _problem_page)
    app.jinja_env.undefined = StrictUndefined
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.globals.update(
        now=site.clock, version=site.version, refresh_seconds=REFRESH_SECONDS, user=lambda: g.get("user")
    )
    app.jinja_env.filters["time"] = lambda moment: _local(moment, site)
    return app


def _routes(door: Door, pages: Pages) -> tuple[Route, ...]:
    return (
        Route("/", "studies", pages.studies, Access.VIEWER),
        Route("/studies/<token>", "study", pages.study, Access.VIEWER),
        Route("/studies/<token>/picture.png", "picture", pages.picture, Access.VIEWER),
        Route("/studies/<token>/again", "again", pages.again, Access.ADMIN, ("POST",)),
        Route("/packs", "packs", pages.packs, Access.VIEWER),
        Route("/incidents", "incidents", pages.incidents, Access.VIEWER),
        Route("/account", "account", door.account, Access.VIEWER, ("GET", "POST")),
        Route("/log-in", "log_in", door.log_in, Access.PUBLIC, ("GET", "POST")),
        Route("/log-out", "log_out", door.log_out, Access.VIEWER, ("POST",)),
        Route("/healthz", "health", pages.health, Access.PUBLIC),
    )


def _harden(response: Response) -> Response:
    response.headers.update(HEADERS)
    if request.endpoint == "static":
        response.headers["Cache-Control"] = "public, max-age=3600"
    else:
        response.headers["Cache-Control"] = "no-store"
    return response


def _problem_page(error: Exception) -> ResponseReturnValue:
    status = _status_of(error)
    if status >= 500:  # noqa: PLR2004 - server errors
        logger_for("web").error("request failed", path=request.path, exc_info=error)
    title, way_forward = _PROBLEMS.get(status, ("That did not work", "The list of studies is the way in."))
    return render_template("problem.html", status=status, title=title, way_forward=way_forward), status


def _status_of(error: Exception) -> int:
    if isinstance(error, HTTPException):
        return error.code or 500
    if isinstance(error, UnknownStudyError):
        return 404
    if isinstance(error, TransitionError):
        return 409
    if isinstance(error, StorageError):
        return 503
    return 500


def _local(moment: datetime, site: Site) -> str:
    return moment.astimezone(site.clock().tzinfo).strftime("%Y-%m-%d %H:%M:%S")
