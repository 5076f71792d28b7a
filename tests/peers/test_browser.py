"""A real browser on the real site: log-in, list, one study, by mouse and by keyboard, in light, dark and narrow."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from appliance.admin.server import listen, serve
from appliance.domain.device import DeviceIdentity
from appliance.domain.lifecycle import StudyEvent
from appliance.reporting.reporter import DicomReporter
from tests.fakes import phantom
from tests.fakes.scene import analysis_of, outcomes_of, phantom_instance, with_mask
from tests.fakes.site import PASSWORD, Scene, scene_in

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

pytestmark = pytest.mark.peer


@dataclass
class Visit:
    """A visit of the site, with everything that the browser complained about or asked elsewhere for."""

    base: str
    scene: Scene
    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def log_in(self) -> None:
        """Fill the form and wait for the list."""
        self.page.goto(f"{self.base}/")
        self.page.get_by_label("Name").fill("admin")
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Log in").click()
        expect(self.page.get_by_role("heading", name="Studies")).to_be_visible()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a network of its own."""
    if not Path(CHROMIUM).exists():
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("Chromium is not installed (apt install chromium).")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A site over one study of every kind."""
    with scene_in(tmp_path) as made:
        yield made


@pytest.fixture
def base(scene: Scene) -> Iterator[str]:
    """The site's address, served as `insite web` serves it."""
    listener, stop, ready = listen("127.0.0.1", 0), threading.Event(), threading.Event()
    port = listener.getsockname()[1]
    thread = threading.Thread(target=serve, args=(scene.app, listener, stop, ready.set))
    thread.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{port}"
    stop.set()
    thread.join(30)


@pytest.fixture
def visit(chromium: Browser, scene: Scene, base: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A fresh profile; the test fails when the console says anything or a byte is asked for elsewhere."""
    wished = {"viewport": {"width": 1440, "height": 900}, **getattr(request, "param", {})}
    context = chromium.new_context(**wished)
    context.set_default_timeout(30_000)
    made = Visit(base, scene, context, context.new_page())
    made.page.on("console", lambda message: made.complaints.append(f"{message.type}: {message.text}"))
    made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
    made.page.on("request", lambda asked: made.asked.add(asked.url))
    yield made
    context.close()
    assert made.complaints == []
    assert {url for url in made.asked if not url.startswith(base)} == set()


def test_from_log_in_to_findings(visit: Visit) -> None:
    """A radiologist logs in, finds the study, and sees the picture and what the tasks said."""
    visit.log_in()
    page = visit.page
    page.get_by_label("Find").fill("synthetic")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("link", name="PHANTOM, SYNTHETIC").click()
    expect(page.get_by_text("AI result, unverified; not for diagnosis without review.").first).to_be_visible()
    expect(page.get_by_text("0.874")).to_be_visible()
    picture = page.locator("figure img")
    expect(picture).to_have_js_property("complete", value=True)
    assert picture.evaluate("image => image.naturalWidth") > 200
    page.get_by_role("button", name="Analyse and send again").click()
    expect(page.get_by_role("status")).to_contain_text("in the queue again")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()


def test_the_contour_of_the_sent_segmentation_is_shown(visit: Visit, tmp_path: Path) -> None:
    """The study's page shows the image with the contour of the DICOM segmentation.

    With `INSITE_DOCS_IMAGES=docs/images` the page is kept there as `study.png`: so the manual's picture is made.
    """
    made, scene = phantom_instance(), visit.scene
    reporter = DicomReporter(DeviceIdentity("0123456789ab", "2.25.1", "0.1.0", "INSITE"))
    sources = {phantom.SOP_UID: tmp_path / "phantom.dcm"}
    objects = reporter.write(analysis_of(made, with_mask(outcomes_of(made))), sources, scene.clock.now, tmp_path)
    scene.ledger.record_objects(scene.token, 1, objects)
    visit.log_in()
    visit.page.set_viewport_size({"width": 1280, "height": 860})
    visit.page.get_by_role("link", name="PHANTOM, SYNTHETIC").click()
    expect(visit.page.get_by_text("contour: segmentation by the appliance")).to_be_visible()
    picture = visit.page.locator("figure img")
    expect(picture).to_have_js_property("complete", value=True)
    assert picture.evaluate("image => image.naturalWidth") > 200
    wished = os.environ.get("INSITE_DOCS_IMAGES")
    if wished:
        visit.page.screenshot(path=Path(wished) / "study.png", full_page=True)


def test_the_keyboard_is_enough(visit: Visit) -> None:
    """Every step from log-in to a study works without a mouse, and the focus can be seen."""
    page, keyboard = visit.page, visit.page.keyboard
    page.goto(f"{visit.base}/")
    expect(page.get_by_label("Name")).to_be_focused()
    keyboard.type("admin")
    keyboard.press("Tab")
    keyboard.type(PASSWORD)
    keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Studies")).to_be_visible()
    keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    wanted = page.get_by_role("link", name="PHANTOM, SYNTHETIC")
    for _ in range(12):
        keyboard.press("Tab")
        if wanted.evaluate("link => link === document.activeElement"):
            break
    expect(wanted).to_be_focused()
    assert wanted.evaluate("link => getComputedStyle(link).outlineStyle") == "solid"
    keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Findings")).to_be_visible()


def test_the_list_renews_itself_and_keeps_the_focus(visit: Visit) -> None:
    """A study's new state appears without a click, and the link in focus stays in focus."""
    visit.log_in()
    page = visit.page
    link = page.get_by_role("link", name="WAITING, WANDA")
    link.focus()
    token = next(record.token for record in visit.scene.ledger.studies() if "WANDA" in record.patient_name)
    row = page.locator(f"#study-{token}")
    expect(row).to_contain_text("Waiting")
    visit.scene.ledger.apply(token, 1, StudyEvent.STARTED)
    expect(row).to_contain_text("Analysing", timeout=30_000)
    expect(link).to_be_focused()


def test_a_refresh_that_fails_leaves_the_page(visit: Visit) -> None:
    """While the appliance can't read its records, the list stays with its old time, and recovers by itself."""
    visit.log_in()
    page, updated = visit.page, visit.page.locator(".updated")
    visit.context.route("**/?page=1", lambda route: route.fulfill(status=503, body="<p>broken</p>"))
    with page.expect_response("**/?page=1") as failed:
        pass
    assert failed.value.status == 503
    expect(page.get_by_role("link", name="WAITING, WANDA")).to_be_visible()
    before = updated.inner_text()
    visit.context.unroute("**/?page=1")
    visit.scene.clock.turn(1)
    expect(updated).not_to_have_text(before, timeout=30_000)
    visit.complaints[:] = [each for each in visit.complaints if "503" not in each]


def test_an_unattended_page_becomes_the_log_in(visit: Visit) -> None:
    """When the session ends, a page that shows patients is replaced by the log-in without a click."""
    visit.log_in()
    visit.scene.clock.turn(31)
    expect(visit.page.get_by_role("heading", name="Log in")).to_be_visible(timeout=30_000)
    visit.complaints[:] = [each for each in visit.complaints if "401" not in each]


def test_a_hostile_name_runs_nothing(visit: Visit) -> None:
    """Script in a patient's name is shown as text in the list and on the study's page."""
    dialogs: list[str] = []
    visit.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    visit.log_in()
    expect(visit.page.get_by_role("link", name="<script>")).to_be_visible()
    assert dialogs == []


@pytest.mark.parametrize("visit", [{"java_script_enabled": False}], indirect=True)
def test_everything_works_without_javascript(visit: Visit) -> None:
    """With JavaScript switched off, log-in, list, study and buttons work all the same."""
    visit.log_in()
    visit.page.get_by_role("link", name="PHANTOM, SYNTHETIC").click()
    visit.page.get_by_role("button", name="Analyse and send again").click()
    expect(visit.page.get_by_role("status")).to_contain_text("in the queue again")


LUMINANCE = """
() => {
  const part = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 };
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => 0.2126 * part(c[0]) + 0.7152 * part(c[1]) + 0.0722 * part(c[2]);
  const ground = node => {
    for (let each = node; each; each = each.parentElement) {
      const c = rgb(getComputedStyle(each).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const weak = [];
  for (const node of document.querySelectorAll('body *')) {
    const text = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!text || !node.getClientRects().length || node.closest('figure a')) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) weak.push(node.textContent.trim().slice(0, 40) + ' ' + contrast.toFixed(2));
  }
  return weak;
}
"""


@pytest.mark.parametrize(
    "visit",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
    ],
    indirect=True,
    ids=["light", "dark", "narrow"],
)
def test_text_is_legible_and_nothing_scrolls_sideways(visit: Visit) -> None:
    """On every page all text has a contrast of 4.5:1 or more (WCAG 2.2 AA), and the page fits its window's width."""
    visit.page.goto(f"{visit.base}/log-in")
    assert visit.page.evaluate(LUMINANCE) == []
    visit.log_in()
    for path in ("/", f"/studies/{visit.scene.token}", "/packs", "/incidents", "/account"):
        visit.page.goto(visit.base + path)
        assert visit.page.evaluate(LUMINANCE) == [], path
        assert visit.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
