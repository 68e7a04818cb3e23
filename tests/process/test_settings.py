"""What is wrong with a setting is said in plain words, whatever is wrong."""

from pathlib import Path

import pytest

from cloud.settings import CloudSettings
from edge.settings.core import EdgeSettings
from process.settings import InvalidSettings, ProcessSettings, load, settings_of

BOTH = pytest.mark.parametrize("kind", [EdgeSettings, CloudSettings])
EVERY = [(kind, name) for kind in (EdgeSettings, CloudSettings) for name in settings_of(kind)]


def error_of(kind: type[ProcessSettings], file: Path | None = None, **options: object) -> str:
    with pytest.raises(InvalidSettings) as caught:
        load(kind, file, options)
    return str(caught.value)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


@pytest.mark.parametrize(
    ("kind", "written", "meant"),
    [
        (EdgeSettings, "OVERREAD_EDGE_DEADLIN_S", "OVERREAD_EDGE_DEADLINE_S"),
        (EdgeSettings, "overread_edge_inbux", "OVERREAD_EDGE_INBOX"),
        (EdgeSettings, "OVERREAD_EDGE_CLOUD__ADRESS", "OVERREAD_EDGE_CLOUD__ADDRESS"),
        (CloudSettings, "OVERREAD_CLOUD_ADRESS", "OVERREAD_CLOUD_ADDRESS"),
        (CloudSettings, "OVERREAD_CLOUD_TLS__CERTIFICATE", "OVERREAD_CLOUD_TLS__CERT"),
        (EdgeSettings, "deadlin_s", "deadline_s"),
        (EdgeSettings, "Deadline_s", "deadline_s"),
        (EdgeSettings, "receive.dicom.ae_titel", "receive.dicom.ae_title"),
        (CloudSettings, "max_bach", "max_batch"),
        (CloudSettings, "tls.certificate", "tls.cert"),
    ],
)
def test_a_misspelt_variable_or_key_stops_the_start(
    kind: type[ProcessSettings],
    written: str,
    meant: str,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = f"{written}: there is no such setting; did you mean {meant}?"
    if written.upper().startswith("OVERREAD"):
        monkeypatch.setenv(written, "5")
        assert error_of(kind) == said
    else:
        config.write_text(f"{written} = 3")
        assert error_of(kind, config) == f"{config}: {said}"


def test_what_is_no_table_is_told(config: Path) -> None:
    config.write_text("receive = 3")
    assert error_of(EdgeSettings, config) == f"{config}: receive: expected a table, [receive]"


@BOTH
def test_a_name_like_no_setting_leads_to_the_table(
    kind: type[ProcessSettings], config: Path
) -> None:
    config.write_text("xyz = 1")
    assert "no such setting; docs/reference.md lists all settings" in error_of(kind, config)


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=lambda value: str(value))
def test_no_words_of_pydantic_reach_a_user(
    kind: type[ProcessSettings], name: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting with impossible values, from the file and from the environment."""
    said = []
    for value in ("[[1]]", "{ a = -1 }", "nan", "-9", "1979-05-27", '"\\u0001 "', "true", "1.5"):
        config.write_text(f"{name} = {value}")
        try:
            load(kind, config, {})
        except InvalidSettings as error:
            said.append(str(error).replace(str(config), ""))
    assert said
    prefix = kind.model_config.get("env_prefix", "")
    monkeypatch.setenv(f"{prefix}{name.upper().replace('.', '__')}", "\x01{ é")
    try:
        load(kind, None, {})
    except InvalidSettings as error:
        said.append(str(error))
    for one in said:
        assert name.partition(".")[0] in one.lower()
        assert any(word in one for word in ("expected", "must", "requires"))
        for word in ("Input", "pydantic", "Value error", "a valid", "should", "parsing", "\x01"):
            assert word not in one


def test_the_source_of_a_wrong_value_is_named(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option beats the variable, the variable beats the file."""
    config.write_text("deadline_s = 0")
    expected = "expected a number greater than 0 and of at most 31536000"
    assert error_of(EdgeSettings, config) == f"{config}: deadline_s = 0: {expected}"
    monkeypatch.setenv("OVERREAD_EDGE_DEADLINE_S", "soon")
    assert error_of(EdgeSettings, config) == f"OVERREAD_EDGE_DEADLINE_S = 'soon': {expected}"
    assert error_of(EdgeSettings, config, deadline_s=-1) == f"deadline_s = -1: {expected}"


def test_a_table_comes_from_file_environment_and_command_line(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting in it goes by itself, and its messages name the table."""
    config.write_text('[tls]\nca = "file"\ncert = "file"\nkey = "file"')
    monkeypatch.setenv("OVERREAD_CLOUD_TLS__CERT", "variable")
    monkeypatch.setenv("OVERREAD_CLOUD_TLS__KEY", "variable")
    tls = load(CloudSettings, config, {"tls": {"key": Path("option")}}).tls
    assert (tls.ca, tls.cert, tls.key) == (Path("file"), Path("variable"), Path("option"))
    assert tls.problems()[1].startswith("tls.ca = file: No such file")


def test_a_table_in_the_environment_must_be_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERREAD_CLOUD_SITE_WEIGHTS", "north=2")
    said = error_of(CloudSettings)
    assert said.startswith("OVERREAD_CLOUD_SITE_WEIGHTS = 'north=2': expected JSON, a table with")
    monkeypatch.setenv("OVERREAD_CLOUD_SITE_WEIGHTS", '{"north": 2}')
    assert load(CloudSettings, None, {}).site_weights == {"north": 2.0}


@pytest.mark.parametrize("kind", [EdgeSettings, CloudSettings])
@pytest.mark.parametrize("value", ["\\u0000", "a\\u0000b"])
def test_a_zero_byte_is_named(kind: type[ProcessSettings], value: str, config: Path) -> None:
    """In a path it would be told in Python's words, without the name of the setting."""
    name = "state_dir" if kind is EdgeSettings else "tls.ca"
    config.write_text(f'{name} = "{value}"')
    said = error_of(kind, config)
    assert said.startswith(f"{config}: {name} = ")
    assert said.endswith(": expected text without zero bytes")


@pytest.mark.parametrize(
    "address",
    [
        "\\u001b:1",
        " :1",
        "a:\\uff11",
        "a:",
        ":1",
        "a:-1",
        "a:1.0",
        "a b:1",
        "a:99999999999999999",
        "cloud..example.org:1",
        f"{64 * 'a'}.org:1",
    ],
)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (EdgeSettings, "cloud.address"),
        (EdgeSettings, "metrics_address"),
        (CloudSettings, "address"),
        (CloudSettings, "metrics_address"),
    ],
)
def test_an_address_is_printable_and_can_be_looked_up(
    kind: type[ProcessSettings], name: str, address: str, config: Path
) -> None:
    config.write_text(f'{name} = "{address}"')
    assert f"{name} = " in error_of(kind, config)
    assert "invalid address, expected HOST:PORT" in error_of(kind, config)


def test_a_long_value_is_cut(config: Path) -> None:
    config.write_text(f'priority = "{"x" * 10_000}"')
    assert len(error_of(EdgeSettings, config)) < 300


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"cloud = ", "is not valid TOML: Invalid value (at end of document)"),
        (b"site = '\xff'", "is not UTF-8 text, expected a TOML file"),
        ("a folder", "cannot be read: Is a directory"),
        (None, "configuration file not found"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    content: bytes | str | None, says: str, config: Path
) -> None:
    if isinstance(content, bytes):
        config.write_bytes(content)
    elif content:
        config.mkdir()
    said = error_of(EdgeSettings, config)
    assert said.startswith(str(config))
    assert says in said


def test_the_file_that_was_loaded_is_known(config: Path) -> None:
    config.write_text("deadline_s = 4")
    assert load(EdgeSettings, config, {}).file == config
    assert load(EdgeSettings, None, {}).file is None
