"""Reader of the YAML files that describe YOLO data sets of Ultralytics."""

from pathlib import Path
from typing import Any, NamedTuple

from sppnet.data.formats.annotations import report_similar, shorten
from sppnet.data.items import Problems
from sppnet.data.splits import role_of
from sppnet.errors import import_optional, list_some

_MAX_BYTES, _MAX_DEPTH = 1 << 20, 8


class Config(NamedTuple):
    """Contents of a YAML file.

    Attributes:
        base: folder that the paths are relative to.
        splits: folders and list files of each split, as in the file.
        names: class names.
    """

    base: Path
    splits: dict[str, list[str]]
    names: tuple[str, ...]


def parse(file: Path, problems: Problems) -> Config:
    """Read the paths and class names of a YAML file, and report what is wrong with it.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        content = load_yaml(file)
    except ValueError as error:
        problems.report(file, "bad-annotation", str(error))
        return Config(file.parent, {}, ())
    splits = {}
    for key in find_keys(content):
        value = content[key]
        entries = value if isinstance(value, list) else [value]
        if entries and all(isinstance(entry, str) and entry for entry in entries):
            splits[key] = entries
        else:
            reason = f"{key}: expected a folder, a list file or a list of them, got {shorten(value)}"
            problems.report(file, "bad-annotation", reason)
            splits[key] = []
    return Config(_base(file, content.get("path"), problems), splits, _names(file, content, problems))


def find_keys(content: dict[str, Any]) -> list[str]:
    """Return the keys of the splits that a data set has."""
    return [key for key, value in content.items() if role_of(key) and value is not None and value != []]


def is_config(content: dict[str, Any]) -> bool:
    """Return whether a YAML file has the keys of a YOLO data set."""
    return bool(find_keys(content)) and ("names" in content or "nc" in content)


def load_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML mapping whose values are texts, None, lists and mappings.

    Raises:
        ValueError: it cannot be read; the message has the line.
        OSError: the file cannot be read.
    """
    yaml = import_optional("yaml", "YOLO data sets")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"expected at most {_MAX_BYTES} bytes, got {file.stat().st_size}")
    depth = 0
    try:
        text = file.read_bytes().decode("utf-8-sig")
        for event in yaml.parse(text, Loader=loader):
            line = f"line {event.start_mark.line + 1}"
            if getattr(event, "anchor", None) is not None:  # aliases can multiply a small file to gigabytes
                raise ValueError(f"{line}: expected a YAML file without anchors and aliases")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise ValueError(f"{line}: expected at most {_MAX_DEPTH} nested levels")
        content = _plain(yaml.compose(text, Loader=loader), yaml)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read as UTF-8 YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a mapping with train, val and names, got {shorten(content)}")
    return content


def _plain(node: Any, yaml: Any) -> Any:
    """Convert a node without interpreting its texts: a class may be called ``no``, ``1.0`` or ``2024-01-01``."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(value, yaml) for value in node.value]
    if isinstance(node, yaml.MappingNode):
        content: dict[str, Any] = {}
        for key, value in node.value:
            line = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{line}: expected a text or number as the key")
            if key.value in content:
                raise ValueError(f"{line}: expected each key once, got {shorten(key.value)} again")
            content[key.value] = _plain(value, yaml)
        return content
    return None if node is None or node.tag.endswith(":null") else node.value


def _base(file: Path, path: Any, problems: Problems) -> Path:
    """Return the folder of ``path``, or else that of the file, since data sets are moved."""
    if path is None:
        return file.parent
    if isinstance(path, str):
        if (folder := file.parent / path).is_dir():
            return folder
        if Path(path).name != file.parent.name:
            reason = f"path: no folder {shorten(path)}; the paths are read relative to the folder of this file"
            problems.report(file, "passed-over", reason)
    else:
        problems.report(file, "bad-annotation", f"path: expected a folder, got {shorten(path)}")
    return file.parent


def _names(file: Path, content: dict[str, Any], problems: Problems) -> tuple[str, ...]:
    """Return the class names; those of a mapping are in the order of its ids."""
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        ids = [str(number) for number in range(len(names))]
        if wrong := names.keys() - set(ids):
            reason = f"names: expected the ids 0 to {len(names) - 1}, got {list_some(sorted(wrong))}"
            problems.report(file, "bad-annotation", reason)
            return ()
        names = [names[number] for number in ids]
    if not isinstance(names, list) or not names:
        problems.report(file, "bad-annotation", f"names: expected a list of class names, got {shorten(names)}")
        return ()
    empty = [name for name in names if not isinstance(name, str) or not name.strip()]
    if empty:
        problems.report(file, "bad-annotation", f"names: expected a list of class names, got {shorten(empty)}")
        return ()
    if count is not None and (not isinstance(count, str) or count.strip() != str(len(names))):
        reason = f"nc: expected {len(names)}, the number of names, got {shorten(count)}"
        problems.report(file, "bad-annotation", reason)
    return check_names(names, file, problems)


def check_names(names: list[str], file: Path, problems: Problems) -> tuple[str, ...]:
    """Return class names by id without spaces around them, and report repeated and similar names."""
    stripped = tuple(name.strip() for name in names)
    first: dict[str, int] = {}
    for number, name in enumerate(stripped):
        if first.setdefault(name, number) != number:
            reason = f"names: duplicate name {name!r} of the ids {first[name]} and {number}; merged into one class"
            problems.report(file, "similar-classes", reason)
    report_similar(first, file, problems)
    return stripped
