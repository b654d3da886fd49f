"""From the JSON of a checkpoint's metadata to frozen dataclasses that check themselves."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, Generic, TypeVar

from ltx_core.errors import ConfigError, MissingKeyError

T = TypeVar("T")
Count = Annotated[int, 1]  # a whole number, at least that


class Configurator(Generic[T]):
    """Makes a network from a checkpoint's configuration; how is each subclass's `from_config`."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> T:
        """config: the parsed ``config`` metadata of a checkpoint."""
        raise NotImplementedError

    @classmethod
    def completed(cls, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Mapping[str, Any]:
        """`config` with what only the file's tensors tell; shapes: theirs, by their names in the network."""
        return config

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> T:
        """metadata: of a checkpoint, with the parsed ``config`` in it; without, `ConfigError` is raised."""
        if "config" not in metadata:
            raise ConfigError(f"The metadata holds {sorted(metadata)}; expected a parsed 'config'.")
        return cls.from_config(metadata["config"])


def section_of(config: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The object under these keys of a checkpoint's configuration; empty where there is none, or null.

    Raises `ConfigError` for anything else in its place.
    """
    found: Any = config
    for depth, key in enumerate(keys, 1):
        value, where = found.get(key), f"config.{'.'.join(keys[:depth])}"
        found = {} if value is None else checked_object(value, where)
    return found


def checked_object(value: Any, where: str) -> Mapping[str, Any]:
    """`value`, if it is what JSON calls an object; else raises `ConfigError`."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}; expected an object.")
    return value


def parse_config(cls: type[T], section: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` from the keys of `section` that it has fields for.

    Keys without a field are ignored (published files carry many that no network reads); fields without a
    key take their default. `where` names the section in messages, e.g. ``config.transformer``.

    Raises `MissingKeyError` (a KeyError) for a missing key without default, `ConfigError` for a value of the
    wrong type, or a section that is none.
    """
    section, values = checked_object(section, where), {}
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in section:
            values[field.name] = _coerce(section[field.name], hints[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise MissingKeyError(
                f"{where}.{field.name} is missing; expected {_describe(hints[field.name])}."
            )
    return cls(**values)


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`: JSON lists become tuples, integers serve as floats, strings as enums."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in (a for a in args if a is not type(None)):
            try:
                return _coerce(value, option, where)
            except ConfigError:
                continue
    elif origin is Annotated:
        number, least = _coerce(value, args[0], where), args[1]
        if number >= least:
            return number
    elif origin in (tuple, list) and isinstance(value, list | tuple):
        return origin(_coerce(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    elif hint is Any:
        return value
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            pass
    elif (
        origin is None
        and isinstance(hint, type)
        and isinstance(value, hint)
        and isinstance(value, bool) == (hint is bool)
    ):
        return value
    raise ConfigError(f"{where} is {value!r}; expected {_describe(hint)}.")


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(repr(member.value) for member in hint)
    if origin is Annotated:
        return f"a whole number, at least {args[1]}"
    if origin in (typing.Union, types.UnionType):
        return " | ".join("None" if option is type(None) else _describe(option) for option in args)
    if origin is tuple:
        return f"tuple[{_describe(args[0])}, ...]"
    return getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
