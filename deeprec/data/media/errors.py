"""What is wrong with the medium of an item: one kind of error, with the item, the file, the fault and the remedy."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from deeprec._install import install_command


class MediaError(ValueError):
    """A medium that cannot be decoded.

    Attributes:
        what: the fault, such as "is empty (0 bytes)".
        remedy: what to do about it.
        path: of the file, or its key in an archive; "" where it is not known.
        item: whose medium it is, as text; "" where it is not known.
    """

    def __init__(self, what: str, remedy: str, *, path: str = "", item: str = "") -> None:
        self.what, self.remedy, self.path, self.item = what, remedy, path, item
        owner = f"item {item}: " if item else ""
        super().__init__(f"media: {owner}{path or 'content'} {what}; {remedy}")

    def of(self, *, path: str = "", item: str = "") -> MediaError:
        """The same fault of a named file and item."""
        return MediaError(self.what, self.remedy, path=path or self.path, item=item or self.item)


def short(error: BaseException) -> str:
    """The first line of a foreign message, not too long."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line if len(line) <= 160 else f"{line[:160]}..."


@contextmanager
def decoding(kind: str, remedy: str) -> Iterator[None]:
    """Whatever the decoder of another library raises inside is a fault of the medium.

    Damaged files make decoders raise nearly anything, from OSError to IndexError and MemoryError.
    """
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"is no whole {kind} ({short(error)})", remedy) from None


def library(name: str, package: str) -> ModuleType:
    """A module of the extra `content`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"media: {package} must be installed to decode media, got {short(error)!r}; {install_command('content')}"
        ) from None
