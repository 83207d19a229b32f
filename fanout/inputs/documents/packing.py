"""Compressed files, unpacked while they are read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["PACKINGS", "UnpackError", "unpacked"]

# The file extensions of compressed files, and what unpacks them.
PACKINGS: Mapping[str, Callable[[Any], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}


class UnpackError(OSError):
    """A compressed file is cut off or damaged."""

    def __init__(self, error: BaseException) -> None:
        message = " ".join(str(error).split())
        super().__init__(message)
        self.strerror = message


def unpacked(file: BinaryIO, packing: str) -> BinaryIO:
    """Return a file that unpacks another one as it is read, and closes it with itself."""
    opener = cast("Any", gzip.GzipFile if packing == ".gz" else PACKINGS[packing])
    inner = opener(fileobj=file) if packing == ".gz" else opener(file)
    return cast("BinaryIO", io.BufferedReader(_Unpacked(inner, file)))


class _Unpacked(io.RawIOBase):
    """Reads a compressed file; what is wrong with it is an UnpackError."""

    def __init__(self, inner: Any, outer: BinaryIO) -> None:
        super().__init__()
        self._inner = inner
        self._outer = outer

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._inner.readinto(buffer))
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise UnpackError(error) from None
        except OSError as error:
            # This is how bz2 reports damage; an error of the machine has a number.
            if error.errno is None and type(error) is OSError:
                raise UnpackError(error) from None
            raise

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
            self._outer.close()
        super().close()
