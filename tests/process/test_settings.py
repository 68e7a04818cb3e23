"""What is wrong with a setting is said with its name and its source, and without secrets."""

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
def test_a_wrong_value_is_named_on_one_line(
    kind: type[ProcessSettings], name: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for value in ("[[1]]", "{ a = -1 }", "nan", "-9", "1979-05-27", '"\\u0001\\n"', "true", "1.5"):
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
        lines = one.splitlines()
        assert all(name.partition(".")[0] in line.lower() for line in lines)
        assert not any(word in one for word in ("pydantic", "Value error", "\x01"))


def test_each_wrong_setting_has_a_line_that_names_its_source(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option beats the variable, the variable beats the file."""
    expected = "Input should be greater than 0"
    config.write_text('deadline_s = 0\nsite = "ö"\nthreads = "many"')
    assert error_of(EdgeSettings, config).splitlines() == [
        f"{config}: deadline_s: {expected}, got 0",
        f"{config}: site: expected at most 64 ASCII characters, without spaces at the ends,"
        " got 'ö'",
        f"{config}: threads: Input should be a valid integer, unable to parse string as an"
        " integer, got 'many'",
    ]
    config.write_text("deadline_s = 0")
    monkeypatch.setenv("OVERREAD_EDGE_DEADLINE_S", "-2")
    assert error_of(EdgeSettings, config) == f"OVERREAD_EDGE_DEADLINE_S: {expected}, got '-2'"
    assert error_of(EdgeSettings, config, deadline_s=-1) == f"deadline_s: {expected}, got -1"


WEB = '[[targets]]\nname = "pacs"\nkind = "dicomweb"\n'


@pytest.mark.parametrize(
    "text",
    [
        f'{WEB}url = "https://me:S3CRET@a"',
        f'{WEB}url = "https://me:S3/C@RET S3CRET@a"',
        f'{WEB}url = "ftp://me:S3CRET{"x" * 200}@a"',
        f'{WEB}url = "https://a"\ntoken = "S3CRET"',
        f'{WEB}url = "https://a"\ntoken_file = ["S3CRET"]',
        f'{WEB}url = "https://a"\ntls.key = {{ pem = "S3CRET" }}',
        f'{WEB}url = "https://a"\ntls.passphrase = "S3CRET"',
        'targets = "https://me:S3CRET@a"',
        'targets = [["S3CRET"]]',
        'page.password = "S3CRET"',
        'page.password_file = ["S3CRET"]',
        'page.password_file = "S3CRET\\u0000"',
        'traces = "http://me:S3CRET@[::1"',
        'cloud.address = "https://me:S3CRET@cloud"',
    ],
)
def test_no_secret_is_shown(text: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(text)
    assert "S3" not in error_of(EdgeSettings, config)
    monkeypatch.setenv("OVERREAD_EDGE_TARGETS", '[{"url": "https://me:S3CRET@a"')
    assert error_of(EdgeSettings) == "OVERREAD_EDGE_TARGETS: expected JSON"


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
    assert error_of(CloudSettings) == "OVERREAD_CLOUD_SITE_WEIGHTS: expected JSON"
    monkeypatch.setenv("OVERREAD_CLOUD_SITE_WEIGHTS", '{"north": 2}')
    assert load(CloudSettings, None, {}).site_weights == {"north": 2.0}


@pytest.mark.parametrize("kind", [EdgeSettings, CloudSettings])
@pytest.mark.parametrize("value", ["\\u0000", "a\\u0000b"])
def test_a_zero_byte_is_named(kind: type[ProcessSettings], value: str, config: Path) -> None:
    """In a path it would be told in Python's words, without the name of the setting."""
    name = "state_dir" if kind is EdgeSettings else "tls.ca"
    config.write_text(f'{name} = "{value}"')
    assert error_of(kind, config) == f"{config}: {name}: expected text without zero bytes"


@pytest.mark.parametrize(
    "address",
    ["\\u001b:1", " :1", "a:\\uff11", "a:", ":1", "a:-1", "a:1.0", "a b:1", "a:99999999999999999",
     "cloud..example.org:1", f"{64 * 'a'}.org:1"],
)  # fmt: skip
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
    assert f"{name}: invalid address, expected HOST:PORT" in error_of(kind, config)


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
