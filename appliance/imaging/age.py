"""How old a patient is, and how we know: Patient's Age, or the dates of birth and study; nonsense counts as unknown."""

import re
from collections.abc import Iterable
from datetime import date

from appliance.domain.instance import AgeSource

OLDEST_YEARS = 130.0
"""Beyond this a stated age is a mistake: nobody has reached 123."""
CONTRADICTION_YEARS = 1.5
"""A stated age is rounded to a year, and some systems round up; more is a contradiction."""
YEARS_IN_UNIT = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
"""Age String units (PS3.5 6.2, AS)."""
_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
"""DA, with the full stops that ACR-NEMA wrote."""


def age_of(patient_age: str, birth_date: str, study_dates: Iterable[str]) -> tuple[float | None, AgeSource]:
    """The age in years at the study and where it comes from; the first readable one of `study_dates` counts.

    A stated age and a birth date that contradict each other leave the age unknown: believing the wrong one would let a
    child's task speak of an adult.
    """
    stated, reckoned = age_from_string(patient_age), _age_from_dates(birth_date, study_dates)
    if stated is not None and reckoned is not None and abs(stated - reckoned) > CONTRADICTION_YEARS:
        return None, AgeSource.UNKNOWN
    if stated is not None:
        return stated, AgeSource.PATIENT_AGE
    if reckoned is not None:
        return reckoned, AgeSource.BIRTH_DATE
    return None, AgeSource.UNKNOWN


def _age_from_dates(birth_date: str, study_dates: Iterable[str]) -> float | None:
    born = _date_from(birth_date)
    seen = next((day for text in study_dates if (day := _date_from(text)) is not None), None)
    if born is None or seen is None:
        return None
    years = years_between(born, seen)
    return years if 0 <= years <= OLDEST_YEARS else None


def age_from_string(text: str) -> float | None:
    """An Age String (`064Y`, `018M`, `002W`, `010D`) in years; None for anything else, and for an impossible age."""
    match = re.fullmatch(r"([0-9]{1,3})([DWMY])", text.strip().upper())
    if match is None:
        return None
    years = int(match[1]) * YEARS_IN_UNIT[match[2]]
    return years if years <= OLDEST_YEARS else None


def years_between(born: date, seen: date) -> float:
    """Completed years and days of the running one; whole on a birthday, so that an age limit is met on the day."""
    completed = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    days = (seen - _birthday(born, born.year + completed)).days
    return completed + days / 366


def _birthday(born: date, year: int) -> date:
    if (born.month, born.day) == (2, 29):
        return date(year, 3, 1) if not _is_leap(year) else date(year, 2, 29)
    return born.replace(year=year)


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _date_from(text: str) -> date | None:
    match = _DATE.match(text.strip())
    if match is None:
        return None
    try:
        return date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return None
