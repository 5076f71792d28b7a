"""What the pages show: the list, one study, its picture, packs and incidents."""

from pathlib import Path

import pytest

from appliance.domain.device import DeviceIdentity
from appliance.domain.lifecycle import StudyState
from appliance.reporting.reporter import DicomReporter
from tests.fakes import phantom
from tests.fakes.scene import DIGEST, analysis_of, outcomes_of, phantom_instance, with_mask
from tests.fakes.site import Scene


def token_of(scene: Scene, name: str) -> str:
    """The token of the study of a patient."""
    return next(record.token for record in scene.ledger.studies() if name in record.patient_name)


def test_the_list_shows_every_study_with_its_state_and_reason(scene: Scene) -> None:
    """One line a study: patient, state in words, what ran and was refused, and why."""
    text = scene.browser("vera").get("/").text
    for words in (
        "PHANTOM, SYNTHETIC",
        "Done",
        "Needs a look 0.87",
        "2 ran",
        "1 refused",
        "3 refused",
        "research only",
    ):
        assert words in text
    for words in ("Body part is LEG", "Not delivered", "Failed", "The inference daemon did not answer.", "Waiting"):
        assert words in text
    assert "Page 1, 5 of 5 studies" in text


def test_hostile_names_are_text(scene: Scene) -> None:
    """Markup in a patient's name, a description or an incident is shown as written and never run."""
    browser = scene.browser("vera")
    for path in ("/", f"/studies/{token_of(scene, '<script>')}", "/incidents", "/?text=<script>alert(2)</script>"):
        text = browser.get(path).text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "<b>bold" not in text
        assert "<i>The pixel" not in text
        assert "&lt;" in text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("text=leg", ["LEG, LEONARD"]),
        ("text=P003", ["Müller, Änne Marie"]),
        ("text=m%C3%BCller+%C3%A4nne", ["Müller, Änne Marie"]),
        ("text=1.2.3.4", ["WAITING, WANDA"]),
        ("state=queued", ["WAITING, WANDA"]),
        ("state=done&text=synthetic", ["PHANTOM, SYNTHETIC"]),
        ("state=done&text=wanda", []),
        (
            "state=nonsense&page=nonsense",
            ["PHANTOM, SYNTHETIC", "LEG, LEONARD", "Müller, Änne Marie", "WAITING, WANDA"],
        ),
        ("page=2", []),
    ],
)
def test_the_list_is_filtered(scene: Scene, query: str, found: list[str]) -> None:
    """The list is narrowed by state and by words of ID, name, description or study UID."""
    text = scene.browser("vera").get(f"/?{query}").text
    names = ["PHANTOM, SYNTHETIC", "LEG, LEONARD", "Müller, Änne Marie", "WAITING, WANDA"]
    assert [name for name in names if name in text] == found


def test_a_study_shows_findings_deliveries_and_revisions(scene: Scene) -> None:
    """Each task's line says whether it ran, its score and what the score means, and which model spoke."""
    text = scene.browser("vera").get(f"/studies/{scene.token}").text
    for words in (
        "AI result, unverified; not for diagnosis without review.",
        "ID SYNTHETIC-1 · born 1960-01-01 · other · 64 years at the examination",
        "0.874",
        "at or above the operating point 0.42",
        "Sensitivity 0.90",
        "The patient is 64 years old; this task is for patients under 6 years.",
        DIGEST[:12],
        "int8",
        "research only: not validated for patients",
        "The scores on this page are invented",
        "pacs",
        "Revisions",
    ):
        assert words in text
    assert "did not speak" in text


def test_an_undelivered_study_shows_attempts_and_the_last_error(scene: Scene) -> None:
    """A delivery that was given up shows how often it was tried and why it failed."""
    text = scene.browser("vera").get(f"/studies/{token_of(scene, 'Müller')}").text
    assert "Given up" in text
    assert "Connection refused." in text
    assert ">20<" in text


def test_a_failed_study_shows_its_incident(scene: Scene) -> None:
    """What arrived and could not be used stands on the study's page and in the list of incidents."""
    browser = scene.browser("vera")
    for path in (f"/studies/{token_of(scene, '<script>')}", "/incidents"):
        text = browser.get(path).text
        assert "pixels-unreadable" in text
        assert "&lt;i&gt;The pixel data is truncated.&lt;/i&gt;" in text


def test_the_picture_is_a_png_of_the_image(scene: Scene) -> None:
    """The picture is the displayed image; larger on its own than within the page."""
    browser = scene.browser("vera")
    answer = browser.get(f"/studies/{scene.token}/picture.png")
    assert answer.mimetype == "image/png"
    assert answer.data.startswith(b"\x89PNG")
    assert browser.get(f"/studies/{scene.token}/picture.png?image=1&full=1").data.startswith(b"\x89PNG")


def test_an_image_that_can_not_be_shown_is_not_found(scene: Scene) -> None:
    """A file that is gone or can't be decoded gives no picture, and the page still works."""
    browser = scene.browser("vera")
    token = token_of(scene, "LEG")
    assert browser.get(f"/studies/{token}/picture.png").status_code == 404
    assert browser.get(f"/studies/{token}").status_code == 200


def test_the_segmentation_is_drawn_from_the_object_that_was_sent(scene: Scene, tmp_path: Path) -> None:
    """The contour comes out of the DICOM segmentation; a missing one gives no picture rather than a wrong one."""
    browser = scene.browser("vera")
    plain = browser.get(f"/studies/{scene.token}/picture.png").data
    made = phantom_instance()
    reporter = DicomReporter(DeviceIdentity("0123456789ab", "2.25.1", "0.1.0", "INSITE"))
    objects = reporter.write(
        analysis_of(made, with_mask(outcomes_of(made))),
        {phantom.SOP_UID: tmp_path / "phantom.dcm"},
        scene.clock.now,
        tmp_path,
    )
    scene.ledger.record_objects(scene.token, 1, objects)
    assert "contour: segmentation by the appliance" in browser.get(f"/studies/{scene.token}").text
    drawn = browser.get(f"/studies/{scene.token}/picture.png").data
    assert drawn.startswith(b"\x89PNG")
    assert drawn != plain
    next(Path(each.path) for each in objects if each.kind == "SEG").unlink()
    assert browser.get(f"/studies/{scene.token}/picture.png").status_code == 404


def test_an_administrator_sends_results_again(scene: Scene) -> None:
    """A finished study gets a new revision that is worked on from the start; one that is being worked on can't."""
    browser = scene.browser("admin")
    page = f"/studies/{scene.token}"
    assert "Analyse and send again" in browser.get(page).text
    assert browser.post(f"{page}/again").location == page
    assert scene.ledger.study(scene.token).state is StudyState.RECEIVING
    assert [record.revision for record in scene.ledger.revisions(scene.token)] == [1, 2]
    assert "The study is in the queue again" in browser.get(page).text
    assert browser.post(f"{page}/again").status_code == 409
    asked = [line for line in scene.audited() if line["event"] == "asked-again"]
    assert [(line["user"], line["token"]) for line in asked] == [("admin", scene.token)] * 2


def test_packs_show_their_state_and_validation(scene: Scene) -> None:
    """Each pack's line says whether it serves, how far it was validated, and why it was refused."""
    text = scene.browser("vera").get("/packs").text
    for words in (
        "chest-xray",
        "Active",
        "research only",
        "broken",
        "Refused",
        "The signature is missing.",
        "validation unknown",
    ):
        assert words in text
    scene.site.packs_file.write_text("[]")
    assert "No pack is installed" in scene.browser("vera").get("/packs").text
    scene.site.packs_file.unlink()
    assert "has not said yet" in scene.browser("vera").get("/packs").text


def test_every_view_of_a_study_is_audited_once_without_names(scene: Scene) -> None:
    """Who saw which study and when is on record; a page that refreshes itself adds nothing."""
    browser = scene.browser("vera")
    page = f"/studies/{scene.token}"
    browser.get(page, HX_Request="true")
    browser.get(page, HX_Request="true")
    browser.get("/?text=leonard")
    views = [line for line in scene.audited() if line["event"] == "viewed-study"]
    assert views == [
        {
            "at": "2024-03-01T12:00:00+00:00",
            "user": "vera",
            "address": "127.0.0.1",
            "event": "viewed-study",
            "token": scene.token,
            "revision": 1,
        }
    ]
    text = scene.audit_file.read_text().casefold()
    assert "phantom" not in text
    assert "leonard" not in text


def test_nothing_is_shown_that_can_not_be_audited(scene: Scene) -> None:
    """When the audit can't be written, the study is not shown."""
    browser = scene.browser("vera")
    scene.audit_file.unlink()
    scene.audit_file.mkdir()
    answer = browser.get(f"/studies/{scene.token}")
    assert answer.status_code == 503
    assert "PHANTOM" not in answer.text
