"""Settings: file, variables, command line, and clear errors."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from appliance.domain.errors import SettingsError
from appliance.settings import flat, load


def test_each_layer_goes_over_the_one_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable goes over the file, the command line over both, and each value knows where it came from."""
    file = tmp_path / "insite.toml"
    file.write_text('state = "/srv/a"\n[node]\nport = 4242\nae_title = "FILE"\n[web]\nport = 1\n')
    monkeypatch.setenv("INSITE_NODE__AE_TITLE", "VARIABLE")
    monkeypatch.setenv("INSITE_WEB__PORT", "2")
    loaded = load(file, {"web": {"port": 3}})
    assert (loaded.settings.node.port, loaded.settings.node.ae_title, loaded.settings.web.port) == (4242, "VARIABLE", 3)
    assert loaded.origins["node.port"] == str(file)
    assert loaded.origins["node.ae_title"] == "environment"
    assert loaded.origins["web.port"] == "command line"
    assert loaded.origins["web.bind"] == "default"


def test_destinations_are_a_list_of_peers(tmp_path: Path) -> None:
    """A destination needs name, AE title and host; the port is 104 unless said otherwise."""
    file = tmp_path / "insite.toml"
    file.write_text('[[destinations]]\nname = "pacs"\nae_title = "ORTHANC"\nhost = "10.0.0.2"\n')
    (peer,) = load(file).settings.destinations
    assert peer.destination().port == 104


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[nodes]\nport = 1\n", "Unknown setting nodes"),
        ("[node]\nprot = 1\n", "Unknown setting node.prot"),
        ("[node]\nport = 70000\n", "Setting node.port"),
        ('[node]\nae_title = "LONGER THAN SIXTEEN"\n', "Setting node.ae_title"),
        ("[node\n", "is not TOML"),
        ('[[destinations]]\nname = "PACS 1"\nae_title = "X"\nhost = "h"\n', "destinations.0.name"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, words: str) -> None:
    """An unknown key or a value that does not fit gives one sentence with the key and the file."""
    file = tmp_path / "insite.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=words.replace(".", r"\.")):
        load(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A settings file named on the command line must exist."""
    with pytest.raises(SettingsError, match=r"none\.toml can't be read"):
        load(tmp_path / "none.toml")


def test_every_setting_is_documented() -> None:
    """Each setting has a description, so that nobody has to read code."""
    sections = [BaseModel, *BaseModel.__subclasses__()]
    models = [model for section in sections for model in section.__subclasses__() if "appliance" in model.__module__]
    assert len(models) > 5
    for model in models:
        for name, field in model.model_fields.items():
            is_section = isinstance(field.default, BaseModel)
            assert field.description or is_section, f"{model.__name__}.{name}"


def test_folders_follow_the_state_folder(tmp_path: Path) -> None:
    """Installed packs live in the state folder once there are any; before that the shipped packs speak."""
    settings = load(None, {"state": tmp_path}).settings
    assert settings.packs_folder.name == "engines"
    (tmp_path / "packs").mkdir()
    assert settings.packs_folder == tmp_path / "packs"
    assert settings.inference_socket == tmp_path / "run" / "inference.sock"
    assert {settings.ledger_file.parent, settings.spool_folder.parent, settings.results_folder.parent} == {tmp_path}


def test_flat_gives_dotted_keys() -> None:
    """Nested settings become dotted keys."""
    assert dict(flat({"a": {"b": 1, "c": {}}, "d": 2})) == {"a.b": 1, "a.c": {}, "d": 2}
