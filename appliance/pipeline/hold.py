"""While a change of release is being proved, the new version works on golden studies alone.

`insite-switch` makes the file and removes it. A version that fails its proof has then said nothing of a patient.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from appliance.domain.golden_study import is_golden_study
from appliance.domain.instance import StudyKey

HOLD_FILE = Path("run", "proving")
"""In the state folder; what it holds does not matter."""
LONGEST = timedelta(minutes=15)
"""A hold that nobody lifted ends by itself: a proof takes a few minutes, and patients wait."""


class Hold:
    """Says which studies have to wait.

    Args:
        file: The file that stands for a proof under way.
        clock: The present time, aware.
    """

    def __init__(self, file: Path, clock: Callable[[], datetime]) -> None:
        self._file = file
        self._clock = clock

    def keeps(self, key: StudyKey) -> bool:
        """Whether this study has to wait for the end of a proof."""
        return not is_golden_study(key) and self._stands()

    def _stands(self) -> bool:
        try:
            begun = datetime.fromtimestamp(self._file.stat().st_mtime, UTC)
        except FileNotFoundError:
            return False
        return self._clock() - begun < LONGEST
