"""Networks from a Python file that the user trusts: ``--arch path/to/file.py:factory``.

This is the one place where banaudit runs code that is not its own, and only because the user named the file.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from banaudit.errors import UsageError


def names_a_file(arch: str) -> bool:
    """Whether an ``--arch`` value names a file and a factory, not a known architecture."""
    return arch.rpartition(":")[0].endswith(".py") or arch.endswith(".py")


_BESIDE: dict[str, str] = {}
"""Name of a module that the user's code imported -> its folder. It stays imported, since a network may import it again
when it runs; another folder's module of the same name must not be taken for it."""


@contextmanager
def user_code(arch: str) -> Iterator[None]:
    """The user's code runs inside: with the modules beside its file, and without a way to end the process.

    Where it ends the process, as scripts do, that is an error and no result.

    Args:
        arch: ``path/to/file.py:factory``, for the message.

    Raises:
        UsageError: Instead of ``SystemExit``, which would pass for an exit code of banaudit's own.
    """
    folder = str(Path(arch.rpartition(":")[0]).expanduser().resolve().parent)
    for name in [name for name, home in _BESIDE.items() if home != folder]:
        sys.modules.pop(name, None)
        del _BESIDE[name]
    before = set(sys.modules)
    sys.path.append(folder)  # last, so that nothing there takes the place of a module that others import
    try:
        yield
    except SystemExit as error:
        detail = " ".join(str(error).split())
        raise UsageError(
            f"--arch {arch}: its code ended the process (SystemExit: {detail}); "
            "guard what is a script with if __name__ == '__main__'"
        ) from error
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
        for name in set(sys.modules) - before:
            if _lies_in(sys.modules[name], folder):
                _BESIDE[name] = folder


def _lies_in(module: ModuleType, folder: str) -> bool:
    file = getattr(module, "__file__", None)
    # A package without an __init__.py has no file, but the folders that it is made of.
    places = [file] if isinstance(file, str) else list(getattr(module, "__path__", ()))
    return any(Path(folder) in Path(place).resolve().parents for place in places)


@dataclass(frozen=True)
class UserFactory:
    """A factory from the user's file.

    Args:
        arch: ``path/to/file.py:factory``, for messages.
        call: The function or class.
        takes_classes: Whether it has an argument ``num_classes``.
    """

    arch: str
    call: Callable[..., object]
    takes_classes: bool

    def make(self, classes: int | None) -> nn.Module:
        """Call it; the global random state stays as it is.

        Args:
            classes: Number of classes K, handed over where it takes them; none: its default.

        Raises:
            UsageError: It failed, or made something else than a module.
        """
        try:
            with torch.random.fork_rng(devices=[]), user_code(self.arch):
                network = self.call(num_classes=classes) if self.takes_classes and classes is not None else self.call()
        except UsageError:
            raise
        except Exception as error:
            raise _failure(self.arch, error) from error
        name = self.arch.rpartition(":")[2]
        if not isinstance(network, nn.Module):
            raise UsageError(
                f"--arch {self.arch}: expected {name}() to make a torch.nn.Module, got {type(network).__name__}"
            )
        if any(map(nn.parameter.is_lazy, (*network.parameters(), *network.buffers()))):
            raise UsageError(
                f"--arch {self.arch}: {name}() makes lazy layers, whose shapes only a first batch decides; pass one "
                "through the network in the factory"
            )
        return network


def factory_from_file(arch: str) -> UserFactory:
    """Run a file for a factory in it; the global random state stays as it is.

    Args:
        arch: ``path/to/file.py:factory``.

    Raises:
        UsageError: No such file or factory, or the file failed.
    """
    path_text, _, name = arch.rpartition(":")
    if arch.endswith(".py") or not name:
        raise UsageError(f"--arch {arch}: expected path/to/file.py:factory, found no factory after the path")
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise UsageError(f"--arch {arch}: there is no file {path}")
    module_name = f"banaudit_user_architecture_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = source  # dataclasses and pickling look their module up by name
    try:
        with torch.random.fork_rng(devices=[]), user_code(arch):
            spec.loader.exec_module(source)
            factory = getattr(source, name, None)
            if not callable(factory):
                raise UsageError(f"--arch {arch}: {path.name} has no function or class {name}")  # noqa: TRY301
            return UserFactory(arch, factory, "num_classes" in inspect.signature(factory).parameters)
    except UsageError:
        del sys.modules[module_name]
        raise
    except Exception as error:
        del sys.modules[module_name]
        raise _failure(arch, error) from error


def _failure(arch: str, error: Exception) -> UsageError:
    detail = " ".join(str(error).split())
    return UsageError(f"--arch {arch}: running it failed with {type(error).__name__}: {detail}")
