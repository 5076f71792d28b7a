"""Every address of the site, walked: who may ask, with which headers, and what an error looks like."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from flask import Flask
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from appliance.admin.app import create_app
from appliance.domain.errors import StorageError
from tests.fakes.site import Browser, Scene

OPEN_TO_ALL = {"static", "log_in", "health"}
PATIENT_DATA = ("PHANTOM", "SYNTHETIC", "LEONARD", "Müller", "WANDA", "P001", "1.2.3.1", "THORAX")


def addresses(app: Flask, token: str) -> Iterator[tuple[Rule, str, str]]:
    """Every rule, a real address for it, and each method that it answers."""
    for rule in app.url_map.iter_rules():
        path = rule.rule.replace("<token>", token).replace("<path:filename>", "insite.css")
        for method in sorted(rule.methods or ()):
            yield rule, path, method


def ask(browser: Browser, method: str, path: str) -> TestResponse:
    """Ask, with a valid form token where one is needed."""
    fields = {"csrf": browser.token()} if method == "POST" else None
    return browser.client.open(path, method=method, data=fields, buffered=True)


def test_nothing_with_patient_data_without_a_log_in(scene: Scene) -> None:
    """Whoever is not logged in is sent to the log-in from every page, and sees no patient's data anywhere."""
    browser = scene.browser()
    walked = set()
    for rule, path, method in addresses(scene.app, scene.token):
        answer = ask(browser, method, path)
        walked.add(rule.endpoint)
        assert not any(data in answer.text for data in PATIENT_DATA), f"{method} {path}"
        if rule.endpoint not in OPEN_TO_ALL:
            assert answer.status_code == 303, f"{method} {path}"
            assert answer.location.startswith("/log-in")
    assert walked >= {"studies", "study", "picture", "again", "packs", "incidents", "account", "log_out"}


def test_every_answer_has_the_security_headers(scene: Scene) -> None:
    """Pages, pictures, redirects, files and errors all carry the same strict headers, and pages are not stored."""
    browser = scene.browser("admin")
    paths = [path for _, path, method in addresses(scene.app, scene.token) if method == "GET"]
    for path in [*paths, "/nowhere", "/studies/absent"]:
        headers = browser.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cache-Control"] == ("public, max-age=3600" if path.startswith("/static") else "no-store")


def test_no_page_names_anything_outside_or_runs_inline_script(scene: Scene) -> None:
    """A page loads nothing from elsewhere and works under its own content security policy."""
    browser = scene.browser("admin")
    for path in ("/", f"/studies/{scene.token}", "/packs", "/incidents", "/account", "/nowhere"):
        text = browser.get(path).text
        assert "http://" not in text
        assert "https://" not in text
        assert "<style" not in text
        assert " style=" not in text
        assert " onclick" not in text
        assert text.count("<script") == text.count('<script src="/static/') == 1


def test_every_read_only_route_answers_head(scene: Scene) -> None:
    """HEAD gives the status and headers of GET without a body."""
    browser = scene.browser("vera")
    for path in ("/", f"/studies/{scene.token}", "/packs", "/incidents", "/log-in", "/healthz"):
        answer = browser.client.head(path)
        assert answer.status_code == browser.get(path).status_code
        assert answer.data == b""


def test_the_health_answer_needs_no_log_in(scene: Scene) -> None:
    """Monitoring asks /healthz, which says only that the site answers."""
    assert scene.browser().get("/healthz").json == {"status": "ok", "version": "0.1.0"}


@pytest.mark.parametrize("path", ["/nowhere", "/studies/absent", "/studies/absent/picture.png", "/static/absent.js"])
def test_what_is_not_there_is_a_page(scene: Scene, path: str) -> None:
    """An unknown address or study is a page with a way on, status 404."""
    answer = scene.browser("vera").get(path)
    assert answer.status_code == 404
    assert "There is no such page" in answer.text


@pytest.mark.parametrize("revision", ["0", "7", "99999"])
def test_an_unknown_revision_is_not_found(scene: Scene, revision: str) -> None:
    """A revision that never was is status 404."""
    assert scene.browser("vera").get(f"/studies/{scene.token}?revision={revision}").status_code == 404


def test_a_wrong_method_is_a_page(scene: Scene) -> None:
    """A GET of a button's address changes nothing and is status 405."""
    assert scene.browser("admin").get(f"/studies/{scene.token}/again").status_code == 405


class _BrokenLedger:
    """A ledger whose every method fails, one way or the other."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> object:
        raise self._error


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("secret words"), 500), (StorageError("secret words", "secret"), 503)]
)
def test_an_error_is_a_page_without_its_text(
    scene: Scene, capfd: pytest.CaptureFixture[str], error: Exception, status: int
) -> None:
    """Whatever breaks, the page says so in its own words; the log has the rest."""
    site = replace(scene.site, ledger=_BrokenLedger(error))  # type: ignore[arg-type]  # that is the point
    browser = Browser(create_app(site).test_client())
    browser.log_in("admin")
    answer = browser.get("/")
    assert answer.status_code == status
    assert "secret" not in answer.text
    assert "secret words" in "".join(capfd.readouterr())


def test_an_endless_form_is_refused(scene: Scene) -> None:
    """A body larger than any form of the site is refused before it is read."""
    answer = scene.browser().client.post("/log-in", data={"csrf": "x", "name": "y" * 20000})
    assert answer.status_code == 413
