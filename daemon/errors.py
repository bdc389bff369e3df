"""The four kinds of failure that loops know how to treat.

Edges translate the errors of libraries into these at the boundary. An error
answers two questions: is it worth trying again, and who must hear of it?
Anything that is none of these is a bug: the case it happened on becomes
``broken`` with its traceback, and the next one goes on.
"""

from __future__ import annotations


class PostsaleError(Exception):
    """Base of every error that Postsale raises on purpose."""


class Transient(PostsaleError):
    """The outside world failed for now; the same call may succeed later.

    ``retry_after`` is the least number of seconds to wait, or None when the
    caller's own back-off table decides.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Permanent(PostsaleError):
    """The outside world refused for good; repeating the call cannot help."""


class NeedsHuman(PostsaleError):
    """Postsale will not decide this by itself; ``reason`` says why, as a code."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class ConfigError(PostsaleError):
    """A file that the operator wrote cannot be used as it is (exit status 78).

    Always names the file, the place in it, what is wrong and how to mend it.
    ``others`` are further errors that were found in the same look.
    """

    others: tuple[ConfigError, ...] = ()

    def __init__(self, file: str, key: str, problem: str, mend: str) -> None:
        super().__init__(f"{file}: {key}: {problem} ({mend})" if key else f"{file}: {problem} ({mend})")
        self.file = file
        self.key = key
        self.problem = problem
        self.mend = mend

    def __reduce__(self) -> tuple[object, ...]:
        # it also comes from the process in which the file was opened
        return type(self), (self.file, self.key, self.problem, self.mend), self.__dict__
