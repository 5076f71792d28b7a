"""The golden study: a synthetic or chosen image that goes through the running services and whose results stay here.

It bears a patient of its own, so that nobody takes it for a person's, and so that no destination ever gets it.
"""

from appliance.domain.instance import StudyKey

PATIENT_ID = "INSITE-GOLDEN-STUDY"
ISSUER = "INSITE"
PATIENT_NAME = "INSITE^GOLDEN STUDY"


def is_golden_study(key: StudyKey) -> bool:
    """Whether a study is one of the appliance's own trials."""
    return (key.patient_id, key.issuer) == (PATIENT_ID, ISSUER)
