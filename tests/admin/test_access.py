"""Log-in, log-out, roles, lock-out, idle time and forms' tokens."""

import pytest

from appliance.storage.users import FAILURES_PER_NAME
from tests.fakes.site import PASSWORD, Browser, Scene


def test_a_user_logs_in_and_out(scene: Scene) -> None:
    """A log-in leads to the studies, a log-out ends the session on the server too."""
    browser = scene.browser("vera")
    assert "PHANTOM" in browser.get("/").text
    cookie = browser.client.get_cookie("insite")
    assert cookie is not None
    assert browser.post("/log-out").location == "/log-in"
    assert browser.get("/").status_code == 303
    browser.client.set_cookie("insite", cookie.value)
    assert browser.get("/").status_code == 303


def test_the_cookie_is_kept_from_scripts_and_other_sites(scene: Scene) -> None:
    """The session cookie is HttpOnly and SameSite=Strict; over TLS only where the settings say so."""
    header = scene.browser().get("/log-in").headers["Set-Cookie"]
    assert "HttpOnly" in header
    assert "SameSite=Strict" in header
    assert "Secure" not in header
    scene.app.config["SESSION_COOKIE_SECURE"] = True
    assert "Secure" in scene.browser().get("/log-in").headers["Set-Cookie"]


def test_a_cookie_that_was_not_signed_here_is_nothing(scene: Scene) -> None:
    """A forged or damaged cookie is as good as none."""
    browser = scene.browser("vera")
    cookie = browser.client.get_cookie("insite")
    assert cookie is not None
    browser.client.set_cookie("insite", cookie.value[:-2] + "xx")
    assert browser.get("/").status_code == 303


def test_a_log_in_gives_a_new_session(scene: Scene) -> None:
    """A token known before the log-in is worth nothing after it."""
    browser = scene.browser()
    before = browser.token()
    browser.log_in("vera")
    assert browser.client.post("/log-out", data={"csrf": before}).status_code == 400


@pytest.mark.parametrize(
    ("page", "leads_to"),
    [
        ("/packs", "/packs"),
        ("/studies/" + "0" * 32, "/studies/" + "0" * 32),
        ("//evil.example/", "/"),
        ("https://evil.example/", "/"),
        ("/log-out", "/"),
        ("", "/"),
    ],
)
def test_a_log_in_leads_only_to_pages_of_this_site(scene: Scene, page: str, leads_to: str) -> None:
    """After the log-in comes the page that was asked for, never an address from elsewhere."""
    assert scene.browser().log_in("vera", page=page).location == leads_to


def test_the_log_in_remembers_the_page_that_was_asked_for(scene: Scene) -> None:
    """Whoever opens a study's address logs in first and then sees that study."""
    browser = scene.browser()
    form = browser.get(browser.get(f"/studies/{scene.token}").location)
    assert f'name="page" value="/studies/{scene.token}"' in form.text
    assert browser.log_in("vera").status_code == 303
    assert browser.get("/log-in").location == "/"


def test_a_wrong_password_says_no_more_than_that(scene: Scene) -> None:
    """An unknown name and a wrong password get the same answer."""
    browser = scene.browser()
    known, unknown = browser.log_in("vera", "wrong"), browser.log_in("nobody", "wrong")
    assert known.status_code == unknown.status_code == 403
    for answer in (known, unknown):
        assert "Name or password is not right." in answer.text
    assert PASSWORD not in scene.audit_file.read_text()
    assert [line["event"] for line in scene.audited()] == ["log-in-failed", "log-in-failed"]


def test_too_many_failures_lock_the_name_for_a_while(scene: Scene) -> None:
    """After five failures the page says how long to wait, also to the right password."""
    browser = scene.browser()
    for _ in range(FAILURES_PER_NAME):
        browser.log_in("vera", "wrong")
    answer = browser.log_in("vera")
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "900"
    assert "Try again in 15 min." in answer.text
    scene.clock.turn(15)
    assert browser.log_in("vera").status_code == 303


def test_an_idle_session_ends(scene: Scene) -> None:
    """After the minutes of the settings without a click, the next page is the log-in."""
    browser = scene.browser("vera")
    scene.clock.turn(29)
    assert browser.get("/").status_code == 200
    scene.clock.turn(29)
    assert browser.get("/").status_code == 200
    scene.clock.turn(30)
    assert browser.get("/").status_code == 303


def test_a_page_that_refreshes_itself_does_not_keep_the_session(scene: Scene) -> None:
    """An unattended screen turns into the log-in page by itself."""
    browser = scene.browser("vera")
    scene.clock.turn(20)
    assert browser.get("/", HX_Request="true").status_code == 200
    scene.clock.turn(20)
    answer = browser.get("/", HX_Request="true")
    assert answer.status_code == 401
    assert answer.headers["HX-Redirect"] == "/log-in"
    assert not answer.data


def test_a_removed_user_is_out_at_the_next_click(scene: Scene) -> None:
    """Removing a user takes effect at once."""
    browser = scene.browser("vera")
    scene.site.users.remove_user("vera")
    assert browser.get("/").status_code == 303


@pytest.mark.parametrize("token", [None, "", "wrong"])
@pytest.mark.parametrize("path", ["/log-in", "/log-out", "/account", "/studies/{}/again", "/nowhere"])
def test_no_form_is_taken_without_its_token(scene: Scene, path: str, token: str | None) -> None:
    """A form that did not come from a page of this site changes nothing."""
    browser = scene.browser("admin")
    fields = {} if token is None else {"csrf": token}
    answer = browser.client.post(path.format(scene.token), data=fields)
    assert answer.status_code == 400
    assert "no longer valid" in answer.text
    assert scene.ledger.study(scene.token).state.value == "done"


def test_a_form_without_any_cookie_is_refused(scene: Scene) -> None:
    """A first request that is a POST comes from elsewhere."""
    assert scene.browser().client.post("/log-in", data={"csrf": ""}).status_code == 400


def test_a_viewer_may_look_but_not_ask_again(scene: Scene) -> None:
    """Sending results again is for administrators, by page and by address."""
    browser = scene.browser("vera")
    assert "Analyse and send again" not in browser.get(f"/studies/{scene.token}").text
    answer = browser.post(f"/studies/{scene.token}/again")
    assert answer.status_code == 403
    assert "for administrators" in answer.text


def change(browser: Browser, present: str, new: str, again: str) -> int:
    """Fill the form of the account page."""
    return browser.post("/account", "/account", present=present, new=new, again=again).status_code


def test_a_changed_password_ends_the_other_sessions(scene: Scene) -> None:
    """Whoever changes the password stays logged in; every other session of theirs ends."""
    here, elsewhere = scene.browser("vera"), scene.browser("vera")
    assert change(here, PASSWORD, PASSWORD + "!", PASSWORD + "!") == 200
    assert here.get("/").status_code == 200
    assert elsewhere.get("/").status_code == 303
    assert elsewhere.log_in("vera").status_code == 403
    assert elsewhere.log_in("vera", PASSWORD + "!").status_code == 303
    assert "changed-password" in [line["event"] for line in scene.audited()]


@pytest.mark.parametrize(
    ("present", "new", "again"),
    [
        ("wrong", PASSWORD + "!", PASSWORD + "!"),
        (PASSWORD, PASSWORD + "!", PASSWORD + "?"),
        (PASSWORD, "short", "short"),
    ],
)
def test_an_unfit_change_of_password_changes_nothing(scene: Scene, present: str, new: str, again: str) -> None:
    """A wrong present password, two different new ones or a short one is refused with a sentence."""
    browser = scene.browser("vera")
    assert change(browser, present, new, again) == 400
    assert scene.browser("vera").get("/").status_code == 200
