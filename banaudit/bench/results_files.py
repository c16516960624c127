"""Results files: one small JSON each, whole at any moment, that several processes may add to."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from banaudit.errors import UsageError
from banaudit.whole_files import write_whole

AnyResults = TypeVar("AnyResults", bound=BaseModel)


def read_results(path: Path, kind: type[AnyResults]) -> AnyResults | None:
    """A results file; none where there is no such file yet.

    Raises:
        UsageError: The file is something else.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{path}: is no {kind.__name__} file ({place}: {first['msg']}); move it away or name another"
        ) from None


def from_file(kind: type[AnyResults], make: Callable[[AnyResults], str]) -> Callable[[Path], str]:
    """What makes a text from results, as what makes it from their file.

    Args:
        kind: What the file holds.
        make: Results -> text; where the file is missing or something else a UsageError is raised instead.
    """
    return lambda path: make(need_results(path, kind))


def need_results(path: Path, kind: type[AnyResults]) -> AnyResults:
    """A results file that has to be there.

    Raises:
        UsageError: It is missing, or something else.
    """
    results = read_results(path, kind)
    if results is None:
        raise UsageError(f"{path}: there is no such file; another bench command makes it")
    return results


def kind_of(path: Path, known: Collection[str]) -> str:
    """What a results file says it holds.

    Args:
        path: The file.
        known: What it may say.

    Raises:
        UsageError: There is no such file, or it is no results file, or of another kind.
    """
    try:
        kind = json.loads(path.read_bytes()).get("kind")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: is no results file of the benchmark ({error})") from None
    if not isinstance(kind, str) or kind not in known:
        raise UsageError(f"{path}: kind {kind!r} is not known; expected {', '.join(known)}")
    return kind


def write_results(path: Path, results: BaseModel) -> None:
    """Write a results file so that it is whole at any moment; each record of a list is a line of its own.

    Raises:
        UsageError: The file cannot be written.
    """
    head = results.model_dump(mode="json")
    lists = {name: value for name, value in head.items() if value and isinstance(value, list)}
    text = json.dumps({name: value for name, value in head.items() if name not in lists}, indent=1)
    for name, records in lists.items():
        lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records)
        text = f'{text[:-1].rstrip()},\n "{name}": [\n{lines}\n]}}'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (text + "\n").encode())
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from None


def update_results(path: Path, empty: AnyResults, change: Callable[[AnyResults], AnyResults]) -> AnyResults:
    """Change what a results file holds while no other process does, so that nothing of another's is lost.

    Args:
        path: Results file.
        empty: What to start from where there is no file yet.
        change: What it holds now -> what it shall hold.

    Raises:
        UsageError: The file became something else, or cannot be written.
    """
    # Beside the file a lock would be left in a folder that is committed.
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"banaudit-{name}.lock"):
        results = change(read_results(path, type(empty)) or empty)
        write_results(path, results)
    return results
