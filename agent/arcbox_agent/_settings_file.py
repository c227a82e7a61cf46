"""A file of settings: TOML into attrs, by cattrs, and everything that is wrong with it at once."""

from __future__ import annotations

import re
import tomllib
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from attrs import Attribute, fields, has, resolve_types
from cattrs import Converter, ForbiddenExtraKeysError
from cattrs.errors import ClassValidationError
from cattrs.gen import make_dict_structure_fn, override

from arcbox_agent.settings import Settings, SettingsError, attributes, expected, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LONGEST_KEY = 64
"""Characters of an unknown key beyond which nobody meant a known one."""


def read(path: Path, named_by: str = "") -> tuple[Settings, frozenset[str]]:
    """Read a file of settings.

    Args:
        path: a TOML file.
        named_by: the option or variable that named it, for errors.

    Returns:
        The settings, and the dotted keys of those that the file sets.

    Raises:
        SettingsError: it can't be read, or is wrong; the text has a line for each thing that is.
    """
    document = _parse(path, named_by)
    try:
        settings = _converter().structure(document, Settings)
    except ClassValidationError as error:
        problems = list(_problems(error))
        lines = [f"{path}: {problems[0]}"] if len(problems) == 1 else [f"{path}:", *(f"  {p}" for p in problems)]
        raise SettingsError("\n".join(lines)) from error
    return settings, frozenset(_keys(document))


def _parse(path: Path, named_by: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        suffix = f" (named by {named_by})" if named_by else ""
        raise SettingsError(f"{path}: can't be read: {error.strerror}{suffix}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:  # besides TOMLDecodeError: huge numbers, deep nesting
        raise SettingsError(f"{path}: is not TOML: {error}") from error


def _keys(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _converter() -> Converter:
    """A converter that takes values as they are: `"5"` is no number, and neither is `true`."""
    converter = Converter()
    for kind in (bool, int, str):
        converter.register_structure_hook(kind, _structure_exactly)
    converter.register_structure_hook(float, _structure_float)
    converter.register_structure_hook_func(_is_literal, _structure_literal)
    converter.register_structure_hook_func(_is_tuple, partial(_structure_tuple, converter))
    converter.register_structure_hook_factory(has, partial(_section_hook, converter))
    return converter


def _is_literal(kind: object) -> bool:
    return get_origin(kind) is Literal


def _is_tuple(kind: object) -> bool:
    return get_origin(kind) is tuple


def _structure_exactly(value: object, kind: type[object]) -> object:
    if type(value) is not kind or (type(value) is int and not _fits(value)):
        raise TypeError
    return value


def _structure_float(value: object, _: type[float]) -> float:
    if type(value) is float or (type(value) is int and _fits(value)):
        return float(value)
    raise TypeError


def _fits(number: int) -> bool:
    """Whether it is within the 64 bits that TOML promises: Python's own parser takes any number of them."""
    return -(2**63) <= number < 2**63


def _structure_literal(value: object, kind: object) -> object:
    if value not in get_args(kind):
        raise ValueError
    return value


def _structure_tuple(converter: Converter, value: object, kind: object) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise TypeError
    item_kind: type[object] = get_args(kind)[0]
    return tuple(converter.structure(item, item_kind) for item in value)


def _section_hook(converter: Converter, section: type[Any]) -> Callable[[object, type[object]], object]:
    hooks: dict[str, Any] = {
        attribute.name: override(struct_hook=partial(_structure_setting, converter, attribute))
        for attribute in fields(resolve_types(section))
        if not has(attribute.type)
    }
    structure = make_dict_structure_fn(section, converter, _cattrs_forbid_extra_keys=True, **hooks)

    def structure_section(value: object, kind: type[object]) -> object:
        if not isinstance(value, dict):
            raise TypeError(f"expected a table, got {show(value)}")
        return structure(value, kind)

    return structure_section


def _structure_setting(converter: Converter, attribute: Attribute[Any], value: object, kind: type[object]) -> object:
    try:
        structured = converter.structure(value, kind)
        if attribute.validator is not None:  # here, and not only in __init__, which stops at the first
            attribute.validator(None, attribute, structured)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected {expected(attribute)}, got {show(value)}") from error
    return structured


def _problems(error: ClassValidationError, prefix: str = "") -> Iterator[str]:
    of_attributes, of_the_class = error.group_exceptions()
    for problem in of_the_class:
        if not isinstance(problem, ForbiddenExtraKeysError):
            raise problem
        for name in sorted(problem.extra_fields):
            yield f"{prefix}{_key(name)}: unknown key{_suggestion(prefix, name)}"
    for problem, note in of_attributes:
        if isinstance(problem, ClassValidationError):
            yield from _problems(problem, f"{prefix}{note.name}.")
        else:
            yield f"{prefix}{note.name}: {problem}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name) else show(name)


def _suggestion(prefix: str, name: str) -> str:
    if len(name) > _LONGEST_KEY:
        return ""
    keys = [key for key, _ in attributes()]
    known = dict.fromkeys([*keys, *(key.rpartition(".")[0] for key in keys if "." in key)])
    elsewhere = [key for key in known if key.rpartition(".")[2] == name]
    close = elsewhere or get_close_matches(f"{prefix}{name}", known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
