"""Who gets past the door: every request needs a log-in unless its route is public, every POST a token of its form."""

import enum
import hmac
import re
import secrets
from collections.abc import Mapping
from datetime import timedelta

from flask import Flask, abort, g, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue

from appliance.admin.sessions import Sessions
from appliance.admin.site import Site
from appliance.domain.errors import InputError
from appliance.storage.users import Role, User
from appliance.telemetry import logger_for

_COOKIE_SESSION, _COOKIE_CSRF = "sid", "csrf"
_LOCAL_PAGE = re.compile(r"/(studies/[0-9a-f]{32}|packs|incidents|account)?")
"""Where a log-in may lead: a page of this site, never an address out of the request."""


class Access(enum.Enum):
    """Who may ask for a route."""

    PUBLIC = "public"
    VIEWER = "viewer"
    ADMIN = "admin"


class Door:
    """Guards the routes, and answers those of log-in, log-out and password.

    Args:
        access: By endpoint; one that is not listed needs an administrator.
    """

    def __init__(self, site: Site, access: Mapping[str, Access]) -> None:
        self._site = site
        self._access = access
        self._sessions = Sessions(timedelta(minutes=site.session_minutes))
        self._log = logger_for("web")

    def guard(self) -> ResponseReturnValue | None:
        """Let a request in, or answer it; runs before every request."""
        g.user = self._user()
        if request.method not in {"GET", "HEAD", "OPTIONS"}:
            self._check_token()
        if request.endpoint is None:
            return None
        needed = self._access.get(request.endpoint, Access.ADMIN)
        if needed is Access.PUBLIC:
            return None
        if g.user is None:
            return self._send_to_log_in()
        if needed is Access.ADMIN and g.user.role is not Role.ADMIN:
            abort(403)
        return None

    def log_in(self) -> ResponseReturnValue:
        """GET shows the form, POST looks at name and password."""
        if request.method == "POST":
            return self._attempt()
        if g.user is not None:
            return redirect(url_for("studies"))
        return render_template("log_in.html", page=_local_page(request.args.get("page", "")))

    def log_out(self) -> ResponseReturnValue:
        """End this session on the server, not only in the browser."""
        self._record(g.user.name, "logged-out")
        self._sessions.close(session.get(_COOKIE_SESSION, ""))
        session.clear()
        return redirect(url_for("log_in"), 303)

    def account(self) -> ResponseReturnValue:
        """GET shows who is logged in, POST changes the password and ends the user's other sessions."""
        if request.method != "POST":
            return render_template("account.html")
        now, form = self._site.clock(), request.form
        verdict = self._site.users.verify(
            g.user.name, form.get("present", ""), address=request.remote_addr or "", at=now
        )
        problem = ""
        if verdict.user is None:
            problem = "The present password is not right."
        elif form.get("new", "") != form.get("again", ""):
            problem = "The two new passwords differ."
        else:
            try:
                self._site.users.set_password(g.user.name, form.get("new", ""))
            except InputError as error:
                problem = str(error)
        if problem:
            return render_template("account.html", problem=problem), 400
        self._record(g.user.name, "changed-password")
        self._sessions.close_all_of(g.user.name)
        self._start(g.user)
        return render_template("account.html", done=True)

    def token(self) -> str:
        """The token that every form carries; made with the first form that a browser is shown."""
        if _COOKIE_CSRF not in session:
            session[_COOKIE_CSRF] = secrets.token_urlsafe(32)
        return str(session[_COOKIE_CSRF])

    def _attempt(self) -> ResponseReturnValue:
        name, page = request.form.get("name", ""), _local_page(request.form.get("page", ""))
        address = request.remote_addr or ""
        verdict = self._site.users.verify(
            name, request.form.get("password", ""), address=address, at=self._site.clock()
        )
        if verdict.user is not None:
            self._start(verdict.user)
            self._record(verdict.user.name, "logged-in")
            return redirect(page, 303)
        if verdict.locked_until is None:
            self._record("", "log-in-failed")
            return render_template("log_in.html", page=page, problem="Name or password is not right."), 403
        self._record("", "log-in-locked")
        self._log.warning("log-in locked after too many failures", address=address)
        wait = max(1, int((verdict.locked_until - self._site.clock()).total_seconds()))
        problem = f"Too many failed attempts. Try again in {-(-wait // 60)} min."
        return render_template("log_in.html", page=page, problem=problem), 429, {"Retry-After": str(wait)}

    def _start(self, user: User) -> None:
        session.clear()
        session[_COOKIE_SESSION] = self._sessions.open(user.name, self._site.clock())
        g.user = user

    def _user(self) -> User | None:
        identifier = session.get(_COOKIE_SESSION)
        if not isinstance(identifier, str):
            return None
        name = self._sessions.name_of(identifier, self._site.clock(), click=not refreshes_itself())
        return None if name is None else self._site.users.user(name)

    def _send_to_log_in(self) -> ResponseReturnValue:
        if refreshes_itself():
            return "", 401, {"HX-Redirect": url_for("log_in")}
        return redirect(url_for("log_in", page=request.path if request.method == "GET" else None), 303)

    def _check_token(self) -> None:
        sent = request.form.get("csrf", "")
        if _COOKIE_CSRF not in session or not hmac.compare_digest(self.token().encode(), sent.encode()):
            abort(400, "form-expired")

    def _record(self, user: str, event: str) -> None:
        self._site.audit.record(self._site.clock(), user, request.remote_addr or "", event)


def refreshes_itself() -> bool:
    """Whether the page asks on its own, and nobody clicked."""
    return request.headers.get("HX-Request") == "true"


def install(app: Flask, door: Door) -> None:
    """Put the door before every route, and its token within reach of every form."""
    app.before_request(door.guard)
    app.jinja_env.globals["csrf_token"] = door.token


def _local_page(wanted: str) -> str:
    return wanted if _LOCAL_PAGE.fullmatch(wanted) else "/"
