"""Opening packs: each thing that must hold, broken one at a time by whoever holds the key or by whoever does not."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from appliance.domain.errors import (
    BaseMismatchError,
    GateError,
    ManifestError,
    PackContentError,
    PackError,
    SignatureError,
    UnvalidatedPackError,
)
from appliance.domain.manifest import Validation, VerifiedPack
from appliance.packs.files import file_sha256
from appliance.packs.manifest_json import manifest_to_json, task_manifest_to_json
from appliance.packs.open import PackProblem, installed_packs, open_pack
from appliance.packs.signing import generate_keys, sign_pack
from tests.fakes.tiny_pack import TinyPack, rewritten, tiny_pack

TIMES = ("speed.json", "gate-report.html")


@pytest.fixture
def pack(tmp_path: Path) -> TinyPack:
    """A good pack."""
    return tiny_pack(tmp_path)


def opened(pack: TinyPack, *, allow_unvalidated: bool = True) -> VerifiedPack:
    """Open with the pack's own key."""
    return open_pack(pack.folder, [pack.keys.public], allow_unvalidated=allow_unvalidated)


def sign_again(pack: TinyPack) -> None:
    """What only the holder of the key can do."""
    sign_pack(pack.folder, pack.keys.private)


def test_a_good_pack_opens_with_what_its_builder_wrote(pack: TinyPack) -> None:
    """The opened manifest equals the one that the builder returned."""
    assert opened(pack) == VerifiedPack(pack.manifest, pack.folder.resolve())


def test_a_link_to_a_pack_folder_is_followed(pack: TinyPack, tmp_path: Path) -> None:
    """A site may point `current` at a release."""
    (tmp_path / "current").symlink_to(pack.folder)
    assert open_pack(tmp_path / "current", [pack.keys.public], allow_unvalidated=True).folder == pack.folder.resolve()


def test_a_missing_folder_and_a_missing_manifest_are_named(pack: TinyPack, tmp_path: Path) -> None:
    """The error says whether the folder or its manifest is not there."""
    with pytest.raises(PackContentError, match="no pack folder"):
        open_pack(tmp_path / "nowhere", [pack.keys.public], allow_unvalidated=True)
    (pack.folder / "manifest.json").unlink()
    with pytest.raises(ManifestError, match=r"has no manifest\.json"):
        opened(pack)


def test_an_altered_file_is_refused_even_when_signed_again(pack: TinyPack) -> None:
    """The manifest's digest stands behind the signature."""
    with (pack.folder / "encoder.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(SignatureError, match=r"encoder\.onnx"):
        opened(pack)
    sign_again(pack)
    with pytest.raises(PackContentError, match=r"encoder\.onnx .* differs from its digest"):
        opened(pack)


def test_an_unlisted_file_is_refused_even_when_signed_again(pack: TinyPack) -> None:
    """Nothing lies in a pack that its manifest does not name."""
    (pack.folder / "extra.txt").write_text("hello")
    sign_again(pack)
    with pytest.raises(PackContentError, match=r"extra\.txt .* not listed"):
        opened(pack)


def test_times_are_signed_and_stay_out_of_the_digest(pack: TinyPack) -> None:
    """`speed.json` and the page may say something else at each making; nobody but the maker may change them."""
    for times in ("{}", '{"tables": []}'):
        for name in TIMES:
            (pack.folder / name).write_text(times)
        again = rewritten(pack)
        assert again.manifest == pack.manifest == opened(pack).manifest
        assert not set(TIMES) & set(again.manifest.files)
    for name in TIMES:
        (pack.folder / name).write_text("altered")
        with pytest.raises(SignatureError, match=name):
            opened(pack)
        (pack.folder / name).unlink()
        with pytest.raises(SignatureError, match=name):
            opened(pack)
        (pack.folder / name).write_text(times)
    sign_again(pack)
    assert set(opened(pack).unlisted) == set(TIMES)


def test_a_pack_whose_page_is_listed_opens_and_is_held_to_it(pack: TinyPack) -> None:
    """Older packs list `gate-report.html`: there it must be there, and be what its digest says."""
    page = pack.folder / "gate-report.html"
    page.write_text("<p>A report.</p>")
    values = manifest_to_json(pack.manifest)
    values["files"]["gate-report.html"] = file_sha256(page)
    (pack.folder / "manifest.json").write_text(json.dumps(values))
    sign_again(pack)
    assert "gate-report.html" in opened(pack).manifest.files
    page.write_text("<p>Another.</p>")
    sign_again(pack)
    with pytest.raises(PackContentError, match=r"gate-report\.html .* differs from its digest"):
        opened(pack)
    page.unlink()
    sign_again(pack)
    with pytest.raises(PackContentError, match=r"gate-report\.html .* missing"):
        opened(pack)


@pytest.mark.parametrize("name", ["tasks/lungs/speed.json", "speeds.json", "golden/gate-report.html"])
def test_nothing_else_is_unlisted(pack: TinyPack, name: str) -> None:
    """Only these two files, and only at the root, may lie in a pack without being listed."""
    (pack.folder / name).write_text("{}")
    sign_again(pack)
    with pytest.raises(PackContentError, match=f"{name} .* not listed"):
        opened(pack)


def test_a_listed_file_that_is_missing_is_named(pack: TinyPack) -> None:
    """A pack that lost a file is refused."""
    (pack.folder / "MODEL_CARD.md").unlink()
    sign_again(pack)
    with pytest.raises(PackContentError, match=r"MODEL_CARD\.md .* missing"):
        opened(pack)


def test_a_link_and_a_pipe_are_refused(pack: TinyPack) -> None:
    """A pack holds plain files only; neither is opened."""
    os.mkfifo(pack.folder / "pipe.txt")
    with pytest.raises(PackContentError, match=r"pipe\.txt .* special file"):
        opened(pack)
    (pack.folder / "pipe.txt").unlink()
    (pack.folder / "tasks" / "link").symlink_to(pack.folder)
    with pytest.raises(PackContentError, match=r"tasks/link .* symbolic link"):
        opened(pack)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pkl", "run.py", "library.so", "weights"])
def test_a_file_that_could_run_is_refused_even_when_listed_and_signed(pack: TinyPack, name: str) -> None:
    """Pickles, scripts and libraries have no place in a pack, whoever signs it."""
    (pack.folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(PackContentError, match=f"{name} .* of a kind"):
        opened(rewritten(pack))


def test_a_task_for_another_base_is_refused(pack: TinyPack) -> None:
    """A head is bound to the encoder that it was trained on."""
    path = "tasks/lungs/manifest.json"
    other = dataclasses.replace(pack.manifest.tasks[0], base_digest="0" * 64)
    (pack.folder / path).write_text(json.dumps(task_manifest_to_json(other)))
    values = manifest_to_json(pack.manifest)
    values["files"][path] = file_sha256(pack.folder / path)
    (pack.folder / "manifest.json").write_text(json.dumps(values))
    sign_again(pack)
    with pytest.raises(BaseMismatchError, match="lungs was made for the base 000000000000"):
        opened(pack)


def test_an_unvalidated_pack_needs_leave(pack: TinyPack) -> None:
    """A synthetic pack is refused unless somebody allowed it by name of the setting."""
    with pytest.raises(UnvalidatedPackError, match=r"marked synthetic.*packs\.allow_unvalidated"):
        opened(pack, allow_unvalidated=False)
    assert opened(rewritten(pack, validation=Validation.VALIDATED), allow_unvalidated=False)


@pytest.mark.parametrize("report", ['{"verdict": "fail"}', "{}", "[]", '{"verdict": true}'])
def test_a_gate_that_does_not_say_pass_refuses(pack: TinyPack, report: str) -> None:
    """Only the word `pass` opens the gate."""
    (pack.folder / "gate-report.json").write_text(report)
    with pytest.raises(GateError, match="not 'pass'"):
        opened(rewritten(pack))


def test_a_gate_report_other_than_the_named_one_refuses(pack: TinyPack) -> None:
    """The report's identifier is its digest."""
    values = manifest_to_json(pack.manifest) | {"gate_report_id": "0" * 64}
    (pack.folder / "manifest.json").write_text(json.dumps(values))
    sign_again(pack)
    with pytest.raises(GateError, match="not the one"):
        opened(pack)


def test_a_truncated_graph_is_refused_even_when_listed_and_signed(pack: TinyPack) -> None:
    """A damaged ONNX file never reaches a runtime."""
    encoder = pack.folder / "encoder.onnx"
    encoder.write_bytes(encoder.read_bytes()[:-40])
    with pytest.raises(PackContentError, match=r"encoder\.onnx .* no valid ONNX graph"):
        opened(rewritten(pack))


def test_a_bad_pack_is_named_beside_the_good_ones(tmp_path: Path) -> None:
    """Each subfolder is a pack or a problem; the public keys' folder, dot folders and files are neither."""
    good = tiny_pack(tmp_path, name="good")
    tiny_pack(tmp_path, name="stranger", keys=generate_keys(tmp_path / ".stranger"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "keys").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    found = installed_packs(tmp_path, [good.keys.public], allow_unvalidated=True)
    kinds = [(each.name, type(each.error)) if isinstance(each, PackProblem) else each.manifest.name for each in found]
    assert kinds == [("empty", ManifestError), "good", ("stranger", SignatureError)]
    assert all(isinstance(each.error, PackError) for each in found if isinstance(each, PackProblem))


def test_no_folder_of_packs_is_no_pack(tmp_path: Path) -> None:
    """A site without packs is not an error here; the daemon says that nothing serves."""
    assert installed_packs(tmp_path / "nowhere", [], allow_unvalidated=False) == ()
