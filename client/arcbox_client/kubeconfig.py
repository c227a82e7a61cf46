"""Merging the guest's cluster into a kubeconfig file of this machine, of which nothing else changes by a byte.

The file's own text is edited, at the places that YAML's parser names: another program's comments, order and style stay.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECTIONS: Final = {"clusters": "cluster", "contexts": "context", "users": "user"}
_EMPTY: Final = "apiVersion: v1\nkind: Config\n"


class KubeconfigError(Exception):
    """A kubeconfig that can't be merged; the file is as it was."""


def guest_entries(kubeconfig: str, name: str, endpoint: str) -> dict[str, dict[str, Any]]:
    """What a guest's kubeconfig says of its current context, under other names: by section, `{"name", …}`.

    Args:
        kubeconfig: the guest's, with one context or with a current one.
        name: what cluster, context and user shall be called.
        endpoint: the URL of the API as this machine reaches it.

    Raises:
        KubeconfigError: it makes no sense.
    """
    config = _load(kubeconfig)
    contexts = _named(config, "contexts")
    current = contexts.get(config.get("current-context") or next(iter(contexts), ""))
    try:
        context = dict(current["context"])  # type: ignore[index]  # None is one of the errors below
        cluster = dict(_named(config, "clusters")[context["cluster"]]["cluster"])
        user = dict(_named(config, "users")[context["user"]]["user"])
    except (KeyError, TypeError) as error:
        raise KubeconfigError(f"the guest's kubeconfig makes no sense: {error!r}") from error
    return {
        "clusters": {"name": name, "cluster": {**cluster, "server": endpoint}},
        "contexts": {"name": name, "context": {**context, "cluster": name, "user": name}},
        "users": {"name": name, "user": user},
    }


def merged(text: str, entries: dict[str, dict[str, Any]], *, use: bool) -> str:
    """A kubeconfig's text with these entries in it, in place of those with the same names.

    Args:
        text: the file's text; empty where there is none.
        entries: one entry by section, as `guest_entries` has them.
        use: whether the context becomes the current one.

    Raises:
        KubeconfigError: the text makes no sense, or is written in a style that this does not edit.
    """
    result = text or _EMPTY
    _load(result)
    for section, entry in entries.items():
        result = _with_entry(result, section, entry)
    if use:
        result = _with_current_context(result, entries["contexts"]["name"])
    _check(text or _EMPTY, result, entries)
    return result


def merge_file(path: Path, entries: dict[str, dict[str, Any]], *, use: bool) -> Path | None:
    """Merge entries into a file, at once and whole; what was there before is kept beside it, and its path returned.

    Raises:
        KubeconfigError: it makes no sense, or somebody else (kubectl locks likewise) is writing it.
        OSError: it can't be read or written.
    """
    real = path.resolve()  # a link stays one
    real.parent.mkdir(parents=True, exist_ok=True)
    with _locked(real):
        before = real.read_text() if real.exists() else ""
        after = merged(before, entries, use=use)
        backup = None
        if real.exists():
            backup = real.with_name(f"{real.name}.before-{entries['contexts']['name']}")
            shutil.copy2(real, backup)
        _replace(real, after)
    return backup


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file that kubectl uses."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError as error:
        raise KubeconfigError(f"{lock} exists: somebody writes {path}, or ended while doing so") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def _with_entry(text: str, section: str, entry: dict[str, Any]) -> str:
    key = _key(text, section)
    if key is None:
        return f"{_ended(text)}{section}:\n{_block(entry, 0)}"
    name, value = key
    if not value.value or value.tag == "tag:yaml.org,2002:null":
        return f"{text[: name.end_mark.index]}:\n{_block(entry, 0)}{_after_line(text, value.end_mark.index)}"
    if not isinstance(value, yaml.SequenceNode):
        raise KubeconfigError(f"{section} is no list")
    if value.flow_style:
        raise KubeconfigError(f"{section} is written in the style of JSON, which this does not edit")
    for item in value.value:
        if _name_of(item) == entry["name"]:
            start, end = _lines_of(text, item)
            return f"{text[:start]}{_block(entry, value.start_mark.column)}{text[end:]}"
    _, end = _lines_of(text, value.value[-1])
    return f"{_ended(text[:end])}{_block(entry, value.start_mark.column)}{text[end:]}"


def _with_current_context(text: str, name: str) -> str:
    line = yaml.safe_dump({"current-context": name}).rstrip("\n")
    key = _key(text, "current-context")
    if key is None:
        return f"{_ended(text)}{line}\n"
    start, value = key[0].start_mark.index, key[1]
    return f"{text[:start]}{line}{text[max(value.end_mark.index, key[0].end_mark.index + 1) :]}"


def _key(text: str, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise KubeconfigError("the kubeconfig is no YAML mapping in block style, which is all that this edits")
    return next(((key, value) for key, value in root.value if key.value == name), None)


def _name_of(item: yaml.Node) -> str:
    pairs = item.value if isinstance(item, yaml.MappingNode) else []
    return next((str(value.value) for key, value in pairs if key.value == "name"), "")


def _lines_of(text: str, item: yaml.Node) -> tuple[int, int]:
    """Where the lines of a list's item begin, with its dash, and end: after its last value, before comments."""
    dash = text.rindex("-", 0, item.start_mark.index)
    end = text.find("\n", _last_character(item))
    return text.rindex("\n", 0, dash) + 1 if "\n" in text[:dash] else 0, len(text) if end < 0 else end + 1


def _last_character(node: yaml.Node) -> int:
    """The index of the last character of what a node is made of: a block's own end is where the next token begins."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style:
        return max(node.start_mark.index, node.end_mark.index - 1)
    children = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
    return max((_last_character(child) for child in children), default=node.start_mark.index)


def _block(entry: dict[str, Any], column: int) -> str:
    lines = yaml.safe_dump([entry], sort_keys=True, default_flow_style=False).splitlines()
    return "".join(f"{' ' * column}{line}\n" for line in lines)


def _ended(text: str) -> str:
    return text if text.endswith("\n") or not text else text + "\n"


def _after_line(text: str, index: int) -> str:
    """What follows the line that this index is in."""
    end = text.find("\n", index)
    return "" if end < 0 else text[end + 1 :]


def _check(before: str, after: str, entries: dict[str, dict[str, Any]]) -> None:
    """Make sure that what was written means what was meant, and everything else what it meant before."""
    old, new = _load(before), _load(after)
    for section, entry in entries.items():
        expected = {**_named(old, section), entry["name"]: entry}
        if _named(new, section) != expected:
            raise KubeconfigError(f"{section} can't be merged: the file's style is not understood")
    rest = {*_SECTIONS, "current-context"}
    if {key: old[key] for key in old.keys() - rest} != {key: new[key] for key in new.keys() - rest}:
        raise KubeconfigError("the kubeconfig can't be merged: its style is not understood")


def _load(text: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise KubeconfigError(f"no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise KubeconfigError("the kubeconfig is no YAML mapping")
    return config


def _named(config: dict[str, Any], section: str) -> dict[str, dict[str, Any]]:
    items = config.get(section) or []
    if not isinstance(items, list):
        raise KubeconfigError(f"{section} is no list")
    return {item["name"]: item for item in items if isinstance(item, dict) and "name" in item}
