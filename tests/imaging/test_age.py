"""Ages: what Patient's Age and the dates say, and when they say nothing."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain.instance import AgeSource
from appliance.imaging.age import age_from_string, age_of, years_between

DAYS = st.dates(date(1900, 1, 1), date(2100, 12, 31))


@pytest.mark.parametrize(
    ("text", "years"),
    [("064Y", 64), ("018M", 1.5), ("52W", pytest.approx(1, abs=0.01)), ("010D", pytest.approx(0.027, abs=0.001)),
     ("64Y", 64), ("131Y", None), ("", None), ("64", None), ("-4Y", None), ("064X", None), ("999Y", None)],
)  # fmt: skip
def test_an_age_string_is_read_in_years(text: str, years: float | None) -> None:
    """Days, weeks, months and years are understood; an impossible age is no age."""
    assert age_from_string(text) == years


@given(st.text(max_size=8))
def test_any_text_is_an_age_within_reason_or_none(text: str) -> None:
    """Whatever stands in Patient Age, the result is a plausible age or unknown."""
    years = age_from_string(text)
    assert years is None or 0 <= years <= 130


@given(DAYS, st.integers(0, 120))
def test_a_birthday_completes_a_year(born: date, years: int) -> None:
    """A patient is exactly 18 on the 18th birthday and younger the day before, whatever leap years lie between."""
    year = born.year + years
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    birthday = date(year, 3, 1) if (born.month, born.day) == (2, 29) and not leap else born.replace(year=year)
    assert years_between(born, birthday) == years
    assert years_between(born, date.fromordinal(birthday.toordinal() - 1)) < years


@given(DAYS, DAYS, DAYS)
def test_age_grows_with_time(born: date, first: date, second: date) -> None:
    """A later study never makes a patient younger."""
    earlier, later = sorted((first, second))
    assert years_between(born, earlier) <= years_between(born, later)


def test_an_age_from_dates_tolerates_old_notation_and_skips_broken_dates() -> None:
    """ACR-NEMA's full stops are read; a date that is none gives way to the next one."""
    assert age_of("", "1960.01.01", ["", "20249999", "2024.01.01"]) == (64, AgeSource.BIRTH_DATE)


@given(st.text(max_size=10), st.text(max_size=10), st.lists(st.text(max_size=10), max_size=3))
def test_whatever_stands_there_an_age_is_plausible_or_unknown(age: str, born: str, dates: list[str]) -> None:
    """No text in the three attributes makes an impossible age or an error."""
    years, source = age_of(age, born, dates)
    assert (years is None) == (source is AgeSource.UNKNOWN)
    assert years is None or 0 <= years <= 130


@pytest.mark.parametrize(
    ("stated", "source"),
    [("074Y", AgeSource.PATIENT_AGE), ("075Y", AgeSource.PATIENT_AGE), ("003Y", AgeSource.UNKNOWN)],
)
def test_a_stated_age_that_contradicts_the_birth_date_is_no_age(stated: str, source: AgeSource) -> None:
    """An age typed wrong must not let a child's task speak of an adult: the age counts as unknown."""
    assert age_of(stated, "19500101", ["20240101"])[1] is source
