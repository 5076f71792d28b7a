"""Which packs speak for a study: those that are installed and that the inference daemon serves, digest for digest.

An installed pack that is not served (it failed its gate on this machine, say) is asked as well: its tasks then say that
they could not answer, because a task that is known is never silent.
"""

from collections.abc import Callable, Sequence

from appliance.domain.errors import InferenceUnavailableError
from appliance.domain.manifest import PackManifest
from appliance.domain.ports import Inference
from appliance.pipeline.analyse import StudyAnalyser
from appliance.telemetry import logger_for


class PlannedPacks:
    """Keeps the manifests of installed packs, and reads them again when the daemon serves one that is not among them.

    Args:
        installed: Reads and verifies the installed packs; costly, so it is called only when needed.
        max_images: As of `StudyAnalyser`.
    """

    def __init__(self, inference: Inference, installed: Callable[[], Sequence[PackManifest]], max_images: int) -> None:
        self._inference = inference
        self._installed = installed
        self._max_images = max_images
        self._known: dict[str, PackManifest] = {}
        self._log = logger_for("pipeline")

    def analyser(self) -> StudyAnalyser:
        """An analyser for the packs that are served now, and for those that should be.

        Raises:
            InferenceUnavailableError: Nobody answers, nothing is served, or a served pack is not installed here: a pack
                is being exchanged, and later both sides agree.
        """
        served = {model.provenance.pack_digest: model.provenance.pack for model in self._inference.served()}
        if not served:
            raise InferenceUnavailableError("The inference daemon serves no model pack.", "Install a signed pack.")
        if not served.keys() <= self._known.keys():
            self._known = {manifest.digest: manifest for manifest in self._installed()}
            self._log.info("packs read", packs={manifest.name: manifest.release for manifest in self._known.values()})
        unknown = sorted(name for digest, name in served.items() if digest not in self._known)
        if unknown:
            raise InferenceUnavailableError(
                f"The inference daemon serves {', '.join(unknown)} in another version than is installed.",
                "Restart the inference daemon; where it is another machine's, install the same packs on both.",
            )
        speaking = {self._known[digest].name: self._known[digest] for digest in served}
        for manifest in sorted(self._known.values(), key=lambda manifest: -manifest.release):
            speaking.setdefault(manifest.name, manifest)
        return StudyAnalyser(self._inference, [speaking[name] for name in sorted(speaking)], self._max_images)
