"""The file of ``--out``: a table that gets its name when it is complete."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from fanout.core.errors import InputError, RunError
from fanout.core.units import plural
from fanout.runs.tables.formats import FORMATS
from fanout.runs.tables.spool import FileSpool
from fanout.runs.tables.table import gather
from fanout.system.private_files import PRIVATE, UNFINISHED

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import Self

    from fanout.runs.branch_output import Output
    from fanout.runs.rows import RowLayout

__all__ = ["OutputFile"]

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class OutputFile:
    """A table file that one command at a time owns, until it is closed.

    Its rows go to ``NAME.unfinished`` beside it, which is locked meanwhile, and gets the name at
    the end. So a file of this name is complete. Symbolic links are not followed.

    Args:
        path: The file. Its folder is created if it is missing.
        layout: What the rows of the run have.
        suffix: Its format, one of ``FORMATS``; None is the suffix of its name.
        replaces: Whether an existing file may be replaced.
        mode: The permissions of the file.
        is_wide: Whether each row is a chunk, with a column for each aspect, model and sample.
        words: How the caller names the file, and the options that replace it and widen it.

    Raises:
        InputError: The file exists, cannot be written, or another command writes to it; a package
            is missing; or the run has nothing to widen.
    """

    def __init__(
        self,
        path: Path,
        layout: RowLayout,
        *,
        suffix: str | None = None,
        replaces: bool = False,
        mode: int = PRIVATE,
        is_wide: bool = False,
        words: tuple[str, str, str] = ("--out ", "--force", "--wide"),
    ) -> None:
        self.path = path
        self._layout, self._mode, self._is_wide = layout, mode, is_wide
        self._named, self._replacing, widening = f"{words[0]}{path}", words[1], words[2]
        self._replaces = replaces
        self._suffix = suffix or path.suffix.lower()
        self._format = FORMATS[self._suffix]
        self._file: IO[bytes] | None = None
        self._folder = -1
        if is_wide and not layout.has_variants:
            why, several = "", "aspects, models or samples"
            if layout.has_votes:
                why, several = ", on which its models and samples vote", "aspects"
            raise InputError(
                f"{widening} has no effect: the run has one answer for each chunk{why}; leave it out, or "
                f"give several {several}"
            )
        self._format.require()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._require_free()
            self._file = self._owned()
        except OSError as error:
            self.close()
            raise InputError(f"cannot write to {self._named}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    @property
    def most_branches(self) -> int | None:
        """How many branches of its run the file can hold; None is any number."""
        if self._format.most_rows is None:
            return None
        return self._format.most_rows * (self._layout.variants if self._is_wide else 1)

    def require_room(self, branches: int) -> None:
        """Raise InputError if the file cannot hold so many branches."""
        most = self.most_branches
        if most is not None and branches > most:
            holds = plural(most, "branch", "branches")
            raise InputError(
                f"{self._named} can hold {holds}, and there are more; a .csv, .parquet or .sqlite "
                "file holds any number"
            )

    def _require_free(self) -> None:
        try:
            found = os.stat(self.path.name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISLNK(found.st_mode):
            raise InputError(
                f"cannot write to {self._named}: it is a symbolic link, which is not followed; "
                "give the file itself"
            )
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"cannot write to {self._named}: it is no regular file")
        if not self._replaces:
            raise InputError(
                f"{self._named} is there already: give another file, or {self._replacing} to "
                "replace it"
            )

    def _owned(self) -> IO[bytes]:
        """Open and lock the unfinished file; an old one of a command that died is taken over."""
        name = self.path.name + UNFINISHED
        while True:
            try:
                opened = os.open(name, _FLAGS, PRIVATE, dir_fd=self._folder)
            except OSError:
                if not self._is_link(name):
                    raise
                # A symbolic link of another user, who may not see the rows.
                os.unlink(name, dir_fd=self._folder)
                continue
            file = os.fdopen(opened, "w+b")
            try:
                if self._is_ours(file):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()

    def _is_link(self, name: str) -> bool:
        with suppress(FileNotFoundError):
            found = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            return stat.S_ISLNK(found.st_mode)
        return False

    def _is_ours(self, file: IO[bytes]) -> bool:
        """Lock the unfinished file and empty it; False if it was removed or replaced meanwhile."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self._named}: another fanout is about to write its results there; give a file "
                "for each run"
            ) from None
        if not self._is_named(file):
            return False
        found = os.fstat(file.fileno())
        if found.st_uid != os.geteuid() or found.st_nlink > 1:
            # Another user's, who could read the rows; or a file that has another name, too.
            os.unlink(self.path.name + UNFINISHED, dir_fd=self._folder)
            return False
        os.fchmod(file.fileno(), PRIVATE)
        file.truncate(0)
        return True

    def _is_named(self, file: IO[bytes]) -> bool:
        name = self.path.name + UNFINISHED
        try:
            named = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(file.fileno()))

    def write(self, branches: Iterable[Output[Any]]) -> list[str]:
        """Write the table, and give the file its name. Its memory does not grow with the table.

        Returns:
            What the format could not hold, in lines for the user.

        Raises:
            RunError: The file cannot be written, for example on a full disk, or cannot hold the
                table; an existing file stays.
        """
        if self._file is None:
            raise RuntimeError("the file is closed")
        try:
            with FileSpool(self.path.parent) as spool:
                table = gather(branches, self._layout, spool, is_wide=self._is_wide)
                self._require_fit(table.count, len(table.columns))
                unfinished = self.path.with_name(self.path.name + UNFINISHED)
                losses = self._format.write(table, self._file, unfinished)
            self._finish(self._file)
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunError(
                f"cannot write the results to {self.path}: {reason}; nothing was written"
            ) from error
        finally:
            self.close()
        return [f"{self.path}: {loss}" for loss in losses]

    def _require_fit(self, rows: int, columns: int) -> None:
        limits = (
            (rows, self._format.most_rows, "row"),
            (columns, self._format.most_columns, "column"),
        )
        for count, most, what in limits:
            if most is not None and count > most:
                raise RunError(
                    f"cannot write the results to {self.path}: they have "
                    f"{plural(count, what, what + 's')}, and {self._suffix} holds {most:,}; "
                    "give a .csv, .parquet or .jsonl file"
                )

    def _finish(self, file: IO[bytes]) -> None:
        file.flush()
        os.fchmod(file.fileno(), self._mode)
        os.fsync(file.fileno())
        if not self._replaces:
            with suppress(FileNotFoundError):
                os.stat(self.path.name, dir_fd=self._folder, follow_symlinks=False)
                raise RunError(
                    f"cannot write the results to {self.path}: another program has written it "
                    "meanwhile"
                )
        here = self._folder
        name = self.path.name
        os.replace(name + UNFINISHED, name, src_dir_fd=here, dst_dir_fd=here)
        # A folder that cannot be synced, such as one of a network, has its own guarantees.
        with suppress(OSError):
            os.fsync(here)

    def close(self) -> None:
        """Remove what is unfinished, and unlock the file. Safe to call twice."""
        if self._file is not None:
            if self._is_named(self._file):
                with suppress(OSError):
                    os.unlink(self.path.name + UNFINISHED, dir_fd=self._folder)
            with suppress(OSError):
                self._file.close()
            self._file = None
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
