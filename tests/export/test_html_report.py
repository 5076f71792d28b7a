"""The gate report as a page holds the figures, no picture, and nothing from elsewhere."""

from pathlib import Path

import pytest

from export.artefacts import read_json
from export.gate import Rule
from export.html_report import calibration_chart, html_report, roc_chart
from export.layout import SPEEDS
from export.recipe import recipe_from_toml


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    """The shipped page."""
    return (repository / "engines" / "chest-xray" / "gate-report.html").read_text()


def test_the_shipped_page_is_made_of_the_shipped_report(repository: Path, page: str) -> None:
    """Nobody edited the page: the report's JSON and the times make it again, byte for byte."""
    shipped = repository / "engines" / "chest-xray"
    title = recipe_from_toml(shipped / "recipe.toml").pack.title
    assert html_report(title, read_json(shipped / "gate-report.json"), read_json(shipped / SPEEDS)) == page


def test_it_holds_no_picture_and_no_address(page: str) -> None:
    """No image of the data set is embedded, and the page loads nothing."""
    assert "<img" not in page
    assert "data:image" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_a_precision_that_does_not_serve_is_a_warning(repository: Path, page: str) -> None:
    """The page says which precision was left out, what it reached, and what was asked; the shipped one says nothing."""
    shipped = repository / "engines" / "chest-xray"
    report, speeds = read_json(shipped / "gate-report.json"), read_json(shipped / SPEEDS)
    rule = Rule("INT8 is faster than FP32, by the slowest batch", 0.9, 1.0, timed=True)
    refused = {"refused_precisions": {"int8": [rule.row()]}}
    warned = html_report("Pack", report | refused, speeds | {"rules": [rule.row(timed=True)]})
    assert (
        '<p class="warning">int8 does not serve: INT8 is faster than FP32, by the slowest batch 0.9, asked ≥ 1.'
        in warned
    )
    assert "does not serve" not in page


def test_names_are_escaped() -> None:
    """A model's name can't bring markup into the page."""
    assert "<script>" not in roc_chart({"<script>": [(0.0, 0.0), (1.0, 1.0)]})
    assert "<script>" not in calibration_chart({"<script>": [(0.1, 0.2, 5)]})
