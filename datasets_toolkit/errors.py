"""Errors that a user can mend: the command lines print ``error: MESSAGE`` on stderr and exit with status 2, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user or of an input; the message is one line: the file, what is wrong with it, what to do."""

    def __init__(self, message: str) -> None:
        """Keep ``message`` as one line, whatever line breaks the text of a lower layer brought along."""
        super().__init__(" ".join(message.split()))


class MediaError(UserError):
    """An image or a video cannot be read or written."""


class AssetError(UserError):
    """A model file cannot be found, fetched or trusted."""


class NoFaceError(UserError):
    """No usable face was found where one is needed."""
