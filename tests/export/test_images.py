"""Unreadable images and masks are listed and bounded; what the files hold decides whether they are read anew."""

import dataclasses
import io
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from appliance.domain.errors import InputError
from export.artefacts import DONE, read_json, write_json
from export.data import samples_from_csv
from export.images import image_set, input_from_file, prepare, source_digests
from export.line import Line
from export.progress import Silent
from export.recipe import Recipe, recipe_from_toml
from export.tables import source_table
from tests.export.conftest import KERMANY, write_labels


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    """The tiny recipe."""
    return recipe_from_toml(tiny_recipe)


def png(mode: str) -> bytes:
    """A PNG of a mode of Pillow's, from black to white."""
    stream = io.BytesIO()
    Image.linear_gradient("L").convert(mode).save(stream, "PNG")
    return stream.getvalue()


def with_a_bad_chunk() -> bytes:
    """A PNG whose pixels break off, with no chunk behind them."""
    data = png("L")
    start = data.index(b"IDAT")
    pixels = data[start : start + 34]
    return data[: start - 4] + struct.pack(">I", 30) + pixels + struct.pack(">I", zlib.crc32(pixels)) + bytes(12)


def bomb() -> bytes:
    """A PNG that says it is a thousand times as large as anything that a scanner makes."""
    data = bytearray(png("L"))
    start = data.index(b"IHDR")
    data[start + 4 : start + 12] = struct.pack(">II", 65_000, 65_000)
    data[start + 17 : start + 21] = struct.pack(">I", zlib.crc32(data[start : start + 17]))
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"no picture", "cannot identify", id="no picture"),
        pytest.param(with_a_bad_chunk(), "broken PNG", id="bad chunk"),
        pytest.param(bomb(), "decompression bomb", id="bomb"),
        pytest.param(png("I;16"), "no 8-bit grey or colour picture", id="16 bits"),
        pytest.param(png("1"), "no 8-bit grey or colour picture", id="1 bit"),
    ],
)
def test_an_unreadable_image_is_listed(
    tmp_path: Path, tiny_data: Path, recipe: Recipe, content: bytes, reason: str
) -> None:
    """One image of forty that is damaged, far too large or not of 8 bits is left out and named; the others are not."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data" / "images" / "000.jpg").write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    prepare(recipe, tmp_path / "data", out)
    (listed,) = read_json(out / "unreadable.json")
    assert listed["file"] == "images/000.jpg"
    assert reason in listed["reason"]
    prepared = image_set(out)
    assert len(prepared.samples) == len(prepared.images)
    assert "images/000.jpg" not in {sample.file for sample in prepared.samples}


def test_an_unreadable_mask_is_listed_by_its_own_name(tmp_path: Path, tiny_data: Path, recipe: Recipe) -> None:
    """Its image is left out with it, and is not the file to repair."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data" / "masks" / "014.png").write_bytes(b"no picture")
    (tmp_path / "out").mkdir()
    prepare(recipe, tmp_path / "data", tmp_path / "out")
    assert [each["file"] for each in read_json(tmp_path / "out" / "unreadable.json")] == ["masks/014.png"]
    assert "images/014.jpg" not in {sample.file for sample in image_set(tmp_path / "out").samples}


def test_a_mask_that_is_too_dark_to_count_is_listed(tmp_path: Path, tiny_data: Path, recipe: Recipe) -> None:
    """A mask of 0 and 1 is not read as one with nothing drawn; one that is black all over is."""
    shutil.copytree(tiny_data, tmp_path / "data")
    for number, brightest in ((14, 1), (16, 127), (17, 0)):
        mask = np.zeros((96, 80), np.uint8)
        mask[20:70, 10:60] = brightest
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{number:03d}.png")
    (tmp_path / "out").mkdir()
    lenient = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, unreadable_percent_max=50.0))
    prepare(lenient, tmp_path / "data", tmp_path / "out")
    listed = read_json(tmp_path / "out" / "unreadable.json")
    assert [each["file"] for each in listed] == ["masks/014.png", "masks/016.png"]
    assert "the brightest grey level of the mask is 1;" in listed[0]["reason"]


def test_a_class_that_is_lost_with_unreadable_images_is_missed(tmp_path: Path, tiny_data: Path, recipe: Recipe) -> None:
    """The only healthy child of `tune` can't be read: that is said now, and not after hours of training."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data" / "images" / "026.jpg").write_bytes(b"no picture")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"can be read: the split 'tune' has classes \[1\] for the task 'paediatric'"):
        prepare(recipe, tmp_path / "data", tmp_path / "out")


@pytest.mark.parametrize(("split", "numbers"), [("tune", (15, 25, 26, 27)), ("val", (32, 33, 34, 35))])
def test_a_split_without_a_drawn_mask_is_refused(
    tmp_path: Path,
    tiny_data: Path,
    tiny_rows: list[dict[str, str]],
    recipe: Recipe,
    *,
    split: str,
    numbers: tuple[int, ...],
) -> None:
    """Neither what the quantised student loses nor how good the lungs are could be said; an empty mask is none."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "out").mkdir()
    first, *others = numbers
    for number in others:
        assert tiny_rows[number]["dataset"] == KERMANY
        tiny_rows[number]["mask"] = ""
    write_labels(tmp_path / "data", tiny_rows)
    prepare(recipe, tmp_path / "data", tmp_path / "out")
    Image.new("L", (80, 96)).save(tmp_path / "data" / "masks" / f"{first:03d}.png")
    with pytest.raises(InputError, match=f"the split '{split}' has no drawn mask"):
        prepare(recipe, tmp_path / "data", tmp_path / "out")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_a_picture_of_eight_bits_is_read(tmp_path: Path, recipe: Recipe, mode: str) -> None:
    """Grey, coloured or with a palette, with or without transparency."""
    (tmp_path / "picture.png").write_bytes(png(mode))
    assert input_from_file(tmp_path / "picture.png", recipe.input).shape == (512, 512)


def test_too_many_unreadable_images_stop_the_export(tmp_path: Path, tiny_data: Path, tiny_recipe: Path) -> None:
    """Beyond the recipe's bound the data is refused with a count and some names; all are listed where it says."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    files = sorted(str(path.relative_to(data)) for path in (data / "images").iterdir())[:5]
    for file in files:
        (data / file).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"5 of 38 images can't be read: images/000\.jpg, .* and 2 more") as caught:
        Line(tiny_recipe, data, tmp_path, Silent()).prepared()
    listed = tmp_path / "tiny.steps" / "data.partial" / "unreadable.json"
    assert str(listed) in caught.value.way_forward
    assert [each["file"] for each in read_json(listed)] == files


class Heard(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """One line."""
        self.said.append(text)


def test_how_many_images_were_left_out_is_said(tmp_path: Path, tiny_data: Path, tiny_recipe: Path) -> None:
    """Each time, also when the step is not done again, and where the report says what was read."""
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data" / "images" / "000.jpg").write_bytes(b"no picture")
    for _ in range(2):
        heard = Heard()
        line = Line(tiny_recipe, tmp_path / "data", tmp_path, heard)
        line.prepared()
        assert [text for text in heard.said if "1 images can't be read and are left out" in text]
    assert "1 of these images could not be read" in source_table(line.sources, 1)["note"]
    assert "could not be read" not in source_table(line.sources, 0)["note"]


def test_a_changed_picture_or_mask_makes_the_step_run_anew(tmp_path: Path, tiny_data: Path, tiny_recipe: Path) -> None:
    """Labels alone do not tell: other bytes under the same name are read, and what hangs on the step hangs on them."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    found = [Line(tiny_recipe, data, tmp_path, Silent()).prepared()]
    first = image_set(tmp_path / "tiny.steps" / "data").images[0].copy()
    for changed, other in (("images/000.jpg", "images/001.jpg"), ("masks/014.png", "images/001.jpg")):
        (data / changed).write_bytes((data / other).read_bytes())
        found.append(Line(tiny_recipe, data, tmp_path, Silent()).prepared())
    assert len(set(found)) == 3
    assert (image_set(tmp_path / "tiny.steps" / "data").images[0] != first).any()


def test_unchanged_pictures_are_not_prepared_again(tmp_path: Path, tiny_data: Path, tiny_recipe: Path) -> None:
    """The same bytes skip the step; other bytes of the same pixels run it, and nothing behind it changes.

    So does an artefact of a release that did not note what it had read.
    """
    data, done = tmp_path / "data", tmp_path / "tiny.steps" / "data" / DONE
    shutil.copytree(tiny_data, data)
    digest = Line(tiny_recipe, data, tmp_path, Silent()).prepared()
    before = done.stat().st_ino, read_json(done)
    assert Line(tiny_recipe, data, tmp_path, Silent()).prepared() == digest
    assert (done.stat().st_ino, read_json(done)) == before
    with (data / "images" / "000.jpg").open("ab") as stream:
        stream.write(b"behind the picture")
    assert Line(tiny_recipe, data, tmp_path, Silent()).prepared() == digest
    record = read_json(done)
    assert record["read"] != before[1]["read"]
    assert record["files"] == before[1]["files"]
    write_json(done, {key: value for key, value in record.items() if key != "read"})
    assert Line(tiny_recipe, data, tmp_path, Silent()).prepared() == digest
    assert read_json(done) == record


def test_each_data_set_has_a_digest_of_its_own(tmp_path: Path, tiny_data: Path, recipe: Recipe) -> None:
    """A changed or missing file changes the digest of its data set and of no other."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    samples = samples_from_csv(data / "labels.csv", recipe.data, recipe.pack.seed)
    before = source_digests(samples, data)
    assert {name: (each["images"], each["masks"]) for name, each in before.items()} == {
        "nih": (18, 0), "kermany": (18, 18), "hannover": (2, 0),
    }  # fmt: skip
    (data / "images" / "000.jpg").unlink()
    after = source_digests(samples, data)
    assert {name for name in before if before[name] != after[name]} == {"nih"}
