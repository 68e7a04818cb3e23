"""Load the settings of a process, and say what is wrong with them, without secrets."""

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from process.text import printable_line
from process.tls import TlsFiles, is_address

MAX_S = 31_536_000.0
"""Largest time in seconds: a year. Threads cannot wait for arbitrarily long."""

_SECRET = re.compile("password|secret|token|key", re.IGNORECASE)


class InvalidSettings(ValueError):
    """A setting is unknown or not allowed; the message names it, its value and what is expected."""


class ProcessSettings(BaseSettings):
    """Settings that cannot change, from the command line, the environment and a TOML file."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        env_nested_delimiter="__",
    )
    _file: Path | None = PrivateAttr(None)

    @property
    def file(self) -> Path | None:
        """The TOML file that was loaded."""
        return self._file

    @model_validator(mode="after")
    def _name_files_of_tls(self) -> Self:
        """Let messages about files of TLS name the table in which these stand."""
        for path, table in _tables_in(self):
            if isinstance(table, TlsFiles):
                table.named(f"{path}.")
        return self


class Table(BaseModel):
    """Settings that belong together: a table of the TOML file."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


def _is_listening(address: str) -> str:
    if address and not is_address(address):
        raise ValueError("invalid address, expected HOST:PORT, or nothing for off")
    return address


ListenAddress = Annotated[
    str, AfterValidator(_is_listening), Field(description="HOST:PORT, or nothing for off")
]
"""``HOST:PORT`` where a process listens: port 0 is a free one, an empty text is off."""

Settings = TypeVar("Settings", bound=ProcessSettings)


def load(kind: type[Settings], file: Path | None, options: Mapping[str, object]) -> Settings:
    """Return the settings of a process.

    The options come from the command line; None stands for an option that is not set. They
    override the environment, the environment overrides the TOML file, the file the defaults. In
    options and variables, ``__`` stands between a table and a name in it: ``cloud__address``.

    Raises:
        InvalidSettings: the file cannot be read, a name is unknown, or a value is not allowed.
    """
    prefix, fields = kind.model_config.get("env_prefix", ""), settings_of(kind)
    # The variable of each name; case makes no difference to pydantic.
    variables = {
        name.lower().removeprefix(prefix.lower()).replace("__", "."): name
        for name in os.environ
        if name.upper().startswith(prefix)
    }
    # pydantic ignores a variable that it does not know: a misspelt one would have no effect
    for name in sorted(variables.keys() - fields.keys()):
        raise InvalidSettings(_unknown(variables[name], name, kind, as_variable=True))
    for name, variable in variables.items():
        _require_json(variable, fields[name])
    options = {name.replace("__", "."): one for name, one in options.items() if one is not None}
    given = _flat(options, fields)
    in_file = {} if file is None else _flat(_read(file), fields)

    def shown(name: str) -> str:
        if name in given:
            return name
        in_table = name if file is None else f"{file}: {printable_line(name)}"
        return variables.get(name, in_table)

    for name in sorted((in_file.keys() | given.keys()) - fields.keys()):
        raise InvalidSettings(_unknown(shown(name), name, kind))
    values = {n: value for n, value in in_file.items() if n not in variables} | given

    for name, value in values.items():
        if _holds_zero(value):  # no path and no name may, and each library says so in its way
            raise InvalidSettings(f"{shown(name)}: expected text without zero bytes")
    try:
        settings = kind(**_nested(values))
    except ValidationError as error:
        lines = [_line(one, fields, shown) for one in error.errors()]
        raise InvalidSettings("\n".join(lines)) from None  # it holds the values
    settings._file = file
    return settings


def settings_of(kind: type[BaseModel], table: str = "") -> dict[str, FieldInfo]:
    """Return all settings of a kind by their names; one in a table is ``table.name``."""
    found = dict[str, FieldInfo]()
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= settings_of(field.annotation, f"{table}{name}.")
        else:
            found[f"{table}{name}"] = field
    return found


def _tables_in(settings: BaseModel, path: str = "") -> Iterator[tuple[str, BaseModel]]:
    for name in type(settings).model_fields:
        if isinstance(one := getattr(settings, name), BaseModel):
            yield f"{path}{name}", one
            yield from _tables_in(one, f"{path}{name}.")


def _flat(
    values: Mapping[str, object], fields: Mapping[str, FieldInfo], path: str = ""
) -> dict[str, object]:
    """Return the values by the names of `settings_of`; what is in no table stays as it is."""
    flat = dict[str, object]()
    for name, value in values.items():
        inside = f"{path}{name}."
        if isinstance(value, Mapping) and any(one.startswith(inside) for one in fields):
            flat |= _flat(value, fields, inside)
        else:
            flat[f"{path}{name}"] = value
    return flat


def _nested(values: Mapping[str, object]) -> dict[str, Any]:
    """Return the values in their tables again: the inverse of `_flat`."""
    nested = dict[str, Any]()
    for path, value in values.items():
        *tables, name = path.split(".")
        into = nested
        for table in tables:
            into = into.setdefault(table, {})
        into[name] = value
    return nested


def _read(file: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidSettings(f"{file}: configuration file not found") from None
    except OSError as error:
        raise InvalidSettings(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidSettings(f"{file} is not UTF-8 text, expected a TOML file") from error
    except (ValueError, RecursionError) as error:  # also a number too long, or lists too deep
        raise InvalidSettings(f"{file} is not valid TOML: {error}") from error


def _require_json(variable: str, field: FieldInfo) -> None:
    """Refuse a variable for a table or a list that is not JSON."""
    if get_origin(field.annotation) in (dict, tuple):
        try:
            json.loads(os.environ[variable])
        except ValueError:
            raise InvalidSettings(f"{variable}: expected JSON") from None


def _unknown(
    shown: str, name: str, kind: type[ProcessSettings], *, as_variable: bool = False
) -> str:
    """Say that a setting does not exist, and which one may be meant."""

    def written(name: str) -> str:
        prefix = kind.model_config.get("env_prefix", "")
        return prefix + name.replace(".", "__").upper() if as_variable else name

    shown, fields = printable_line(shown), settings_of(kind)
    if any(one.startswith(f"{name}.") for one in fields):
        return f"{shown}: expected a table, [{name}]"
    near = next(iter(get_close_matches(name, fields, n=1)), "")
    hint = f"did you mean {written(near)}?" if near else "docs/reference.md lists all settings"
    return f"{shown}: there is no such setting; {hint}"


def _line(error: ErrorDetails, fields: Mapping[str, FieldInfo], shown: Callable[[str], str]) -> str:
    """Return one error of pydantic on one line: the setting, what is wrong, and its value."""
    parts = [*map(str, error["loc"])]
    path, ends = ".".join(parts), range(len(parts), 0, -1)
    name = next((one for end in ends if (one := ".".join(parts[:end])) in fields), path)
    problem = error["msg"].removeprefix("Value error, ")
    if name == path and path in fields and error["type"] != "value_error":
        problem = f"expected {fields[path].description}" if fields[path].description else problem
    # A table may hold anything, and an unknown or a secret setting a password.
    is_hidden = isinstance(error["input"], Mapping | list | tuple) or _SECRET.search(path)
    if not is_hidden and error["type"] != "extra_forbidden":
        problem += f", got {_value(error['input'])}"
    where = f"{shown(name)}{path.removeprefix(name)}: " if path else ""
    return printable_line(where + _without_password(problem))


def _holds_zero(value: object) -> bool:
    """Return whether a text in the value has a zero byte."""
    if isinstance(value, Mapping):
        return any(_holds_zero(one) for pair in value.items() for one in pair)
    if isinstance(value, list | tuple):
        return any(map(_holds_zero, value))
    return "\0" in str(value)


def _value(value: object) -> str:
    """Show a value, without control characters and not at full length."""
    text = _without_password(repr(value))
    return text if len(text) <= 100 else f"{text[:100]}..."


def _without_password(text: str) -> str:
    """Hide user and password of an address, up to the last @: a password may hold any sign."""
    return re.sub("//.*@", "//***@", text, flags=re.DOTALL)
