"""Load the settings of a process, and say in plain words what is wrong with them."""

import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

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

LONGEST_S = 31_536_000.0
"""Largest time in seconds: a year. Threads cannot wait for arbitrarily long."""


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
            raise InvalidSettings(
                f"{shown(name)} = {_value(value)}: expected text without zero bytes"
            )
    try:
        settings = kind(**_nested(values))
    except ValidationError as error:
        problems = [_sentence(one, fields, shown, values) for one in error.errors()]
        raise InvalidSettings("; ".join(problems)) from error
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
            raise InvalidSettings(
                f"{variable} = {_value(os.environ[variable])}: expected JSON, {expected_of(field)}"
            ) from None


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
    return f"{shown}: there is no such setting; {_hint(name, fields, written)}"


def _hint(name: str, fields: Mapping[str, FieldInfo], written: Callable[[str], str] = str) -> str:
    near = next(iter(get_close_matches(name, fields, n=1)), "")
    return f"did you mean {written(near)}?" if near else "docs/reference.md lists all settings"


def _sentence(
    error: ErrorDetails,
    fields: Mapping[str, FieldInfo],
    shown: Callable[[str], str],
    values: Mapping[str, object],
) -> str:
    """Put one error of pydantic into our words: its own are for programmers."""
    # the exception of a validator of our own, which has its sentence
    cause = error.get("ctx", {}).get("error")
    if not error["loc"]:  # settings that do not fit each other
        return str(cause)
    parts = [*map(str, error["loc"])]
    name = _setting_in(parts, fields)
    if not name:  # the check of a whole table
        return f"{shown('.'.join(parts))}: {cause}"
    length = name.count(".") + 1
    inside = parts[length:]
    if inside and (tables := list(tables_of(fields[name].annotation))):
        located = error["loc"][length:]
        return _sentence_of_table(error, located, tables, shown(name), values.get(name))
    entry = "".join(f".{printable_line(part)}" for part in inside[:1])
    expected = cause or f"expected {expected_of(fields[name])}"
    return f"{shown(name)}{entry} = {_value(error['input'])}: {expected}"


def _sentence_of_table(
    error: ErrorDetails,
    located: Sequence[int | str],
    tables: Sequence[type[BaseModel]],
    shown: str,
    entries: object,
) -> str:
    """Put an error in one table of a list into our words; the table goes by its name.

    ``located`` is what pydantic says after the setting: number and kind of the table, names in it.
    """
    number, *inside = located
    entry = f"{shown}.{_name_of_entry(entries, number)}"
    if "discriminator" in error.get("ctx", {}):  # which of the tables it is
        kind = str(error["ctx"]["discriminator"]).strip("'")
        tags = [get_args(one.model_fields[kind].annotation)[0] for one in tables]
        choices = " or ".join(f'"{tag}"' for tag in tags)
        given = error["input"].get(kind) if isinstance(error["input"], Mapping) else None
        what = "is missing, " if given is None else f"= {_value(given)}: "
        return f"{entry}.{kind} {what}expected {choices}"
    tagged = [one for one in tables if inside and _has_tag(one, inside[0])]
    fields = {n: f for one in tagged or tables for n, f in settings_of(one).items()}
    names = [printable_line(str(part)) for part in (inside[1:] if tagged else inside)]
    if error["type"] == "extra_forbidden":
        name = ".".join(names)
        return f"{entry}.{name}: there is no such setting; {_hint(name, fields)}"
    name = _setting_in(names, fields)
    if not name:  # settings of a table that do not fit each other
        cause = error.get("ctx", {}).get("error")
        return f"{'.'.join([entry, *names])}: {cause or 'expected a table'}"
    expected = expected_of(fields[name])
    if error["type"] == "missing":
        return f"{entry}.{name} is missing, expected {expected}"
    return f"{entry}.{name} = {_value(error['input'])}: expected {expected}"


def _setting_in(parts: Sequence[str], fields: Mapping[str, FieldInfo]) -> str:
    """Return the setting at the beginning of a location; empty if it is that of a table."""
    ends = range(1, len(parts) + 1)
    return next((one for n in ends if (one := ".".join(parts[:n])) in fields), "")


def tables_of(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the class of a table, or of each kind of table in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for one in get_args(annotation):
        yield from tables_of(one)


def _has_tag(table: type[BaseModel], tag: object) -> bool:
    """Return whether one of the model's fields has this text as its only value."""
    return any(get_args(f.annotation) == (tag,) for f in table.model_fields.values())


def _name_of_entry(entries: object, number: object) -> str:
    """Return the name of a table in a list, or its number where it has none."""
    if isinstance(entries, Sequence) and isinstance(number, int) and number < len(entries):
        entry = entries[number]
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str) and entry["name"]:
            return printable_line(entry["name"])
    return str(number)


def _holds_zero(value: object) -> bool:
    """Return whether a text in the value has a zero byte."""
    if isinstance(value, Mapping):
        return any(_holds_zero(one) for pair in value.items() for one in pair)
    if isinstance(value, list | tuple):
        return any(map(_holds_zero, value))
    return "\0" in str(value)


def _value(value: object) -> str:
    """Show a value, without control characters and not at full length."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def expected_of(field: FieldInfo) -> str:
    """Say which values a setting may have: its description, else its type and its bounds."""
    if field.description:
        return field.description
    kind = field.annotation
    choices = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is Literal:
        return " or ".join(f'"{one}"' for one in choices)
    if get_origin(kind) is tuple and get_origin(choices[0]) is Literal:
        words = ", ".join(f'"{one}"' for one in get_args(choices[0]))
        return f"a list of some of {words}"
    names: dict[Any, str] = {
        int: "a whole number", float: "a number", bool: "true or false", Path: "a path",
    }  # fmt: skip
    words = names.get(choices[0] if choices else kind, "text")
    phrases = {"gt": "greater than", "ge": "of at least", "lt": "less than", "le": "of at most"}
    bounds = [
        f"{phrase} {value:.10g}"
        for limit in field.metadata
        for attribute, phrase in phrases.items()
        if (value := getattr(limit, attribute, None)) is not None
    ]
    return f"{words} {' and '.join(bounds)}".rstrip()
