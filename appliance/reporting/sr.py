"""The structured report: Comprehensive 3D SR, TID 1500, one measurement group for every task's outcome."""

from collections.abc import Sequence

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset

from appliance.domain.device import MANUFACTURER, MODEL_NAME, DeviceIdentity
from appliance.domain.findings import StudyAnalysis, TaskOutcome
from appliance.reporting import codes
from appliance.reporting.naming import Naming
from appliance.reporting.sources import PATIENT_AND_STUDY, is_image

SERIES_NUMBER = 9901
CAUTION = "AI result, unverified. Not for diagnosis without review by a physician."

NOTHING_SEGMENTED = "Nothing was segmented: no pixel reached the operating point."


class _AnySourceSR(Comprehensive3DSR):
    """Takes patient and study from a clean header whatever its SOP class.

    Retired and private classes are unknown to the library's tables, and a refusal of such a study is a result too.
    """

    def copy_patient_and_study_information(self, dataset: Dataset) -> None:
        """Copy the patient and study modules (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2)."""
        for keyword in PATIENT_AND_STUDY:
            if keyword in dataset:
                setattr(self, keyword, dataset.get(keyword))


def report_of(
    analysis: StudyAnalysis,
    headers: Sequence[Dataset],
    device: DeviceIdentity,
    naming: Naming,
    previous: Sequence[Dataset] = (),
) -> Comprehensive3DSR:
    """The report of one study.

    Args:
        headers: Clean headers of all source images (`headers_of`), the first of which gives patient and study.
        previous: The report that this one replaces (PS3.3 C.17.2, Predecessor Documents Sequence).
    """
    groups = [_group(outcome, analysis, naming) for outcome in analysis.outcomes]
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(device)),
        procedure_reported=codes.PROCEDURES.get(str(headers[0].get("Modality", "")), codes.IMAGING_PROCEDURE),
        imaging_measurements=groups,
    )
    content[0].ContentSequence.extend(_comment(sentence) for sentence in (CAUTION, *analysis.warnings))
    report = _AnySourceSR(
        evidence=list(headers),
        content=content[0],
        series_instance_uid=naming.uid("series-SR"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=naming.uid("SR"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        previous_versions=list(previous) or None,
    )
    report.SeriesDescription = "AI results, unverified"
    return report


def _observer(device: DeviceIdentity) -> ObserverContext:
    attributes = DeviceObserverIdentifyingAttributes(
        uid=device.device_uid,
        name=MODEL_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=device.serial,
    )
    return ObserverContext(
        observer_type=CodedConcept.from_code(codes.DEVICE), observer_identifying_attributes=attributes
    )


def _group(outcome: TaskOutcome, analysis: StudyAnalysis, naming: Naming) -> MeasurementsAndQualitativeEvaluations:
    image = outcome.image
    images = None
    if image is not None and is_image(image.sop_class_uid):
        images = [SourceImageForMeasurementGroup(image.sop_class_uid, image.sop_instance_uid)]
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=naming.uid(f"tracking-{outcome.pack}.{outcome.task}"), identifier=outcome.title
        ),
        finding_type=codes.coded(outcome.finding),
        algorithm_id=_algorithm(outcome, analysis),
        measurements=_measurements(outcome) or None,
        qualitative_evaluations=_evaluations(outcome, age_unknown=analysis.age_unknown),
        source_images=images,
    )
    sentences = [outcome.reason, *outcome.notes]
    if outcome.mask is not None and not outcome.mask.pixels.any():
        sentences.append(NOTHING_SEGMENTED)
    if outcome.operating_point is not None and outcome.operating_point.meaning:
        sentences.append(f"Operating point: {outcome.operating_point.meaning}")
    group[0].ContentSequence.extend(_comment(sentence) for sentence in sentences if sentence)
    return group


def _algorithm(outcome: TaskOutcome, analysis: StudyAnalysis) -> AlgorithmIdentification:
    digest = analysis.pack_digests.get(outcome.pack, "")
    parameters = [f"pack digest={digest}", f"gate report={analysis.gate_reports.get(outcome.pack, '')}"]
    version = digest[:12]
    if outcome.provenance is not None:
        version = f"release {outcome.provenance.release}"
        parameters.append(f"base digest={outcome.provenance.base_digest}")
        parameters.append(f"precision={outcome.provenance.precision}")
    return AlgorithmIdentification(
        name=f"{outcome.pack}.{outcome.task}",
        version=version or "unknown",
        parameters=parameters,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        manufacturer=MANUFACTURER,
    )


def _measurements(outcome: TaskOutcome) -> list[Measurement]:
    found = []
    if outcome.score is not None:
        found.append(Measurement(codes.SCORE, round(outcome.score, 4), codes.NO_UNITS))
        if outcome.operating_point is not None:
            threshold = round(outcome.operating_point.threshold, 4)
            found.append(Measurement(codes.OPERATING_POINT, threshold, codes.NO_UNITS))
    if outcome.mask is not None and outcome.mask.area_mm2 is not None:
        found.append(Measurement(codes.AREA, round(outcome.mask.area_mm2, 1), codes.SQUARE_MILLIMETRE))
    return found


def _evaluations(outcome: TaskOutcome, *, age_unknown: bool) -> list[QualitativeEvaluation]:
    found = [QualitativeEvaluation(codes.STATE, codes.STATES[outcome.state])]
    if outcome.refusal is not None:
        found.append(QualitativeEvaluation(codes.REFUSAL, codes.refusal_code(outcome.refusal.code)))
    if outcome.positive is not None:
        found.append(QualitativeEvaluation(codes.RESULT, codes.POSITIVE if outcome.positive else codes.NEGATIVE))
    if age_unknown:
        found.append(QualitativeEvaluation(codes.PATIENT_AGE, codes.UNKNOWN))
    return found


def _comment(sentence: str) -> TextContentItem:
    name = CodedConcept.from_code(codes.COMMENT)
    return TextContentItem(name=name, value=sentence, relationship_type=RelationshipTypeValues.CONTAINS)
