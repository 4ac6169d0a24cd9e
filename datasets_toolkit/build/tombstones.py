"""What a work folder remembers of purges, so that a build that goes on does not take the purged in again.

Kept are salted SHA-256 digests, one for each name of a person and for each stretch of a video (hash of its content, start, end, face box).
They tell whether a given name or video was purged, and nothing to whoever does not have it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import write_whole
from datasets_toolkit.recipes.base import BOX, Source

FILE = "purged.json"


class Tombstones:
    """The purged people and videos of a work folder.

    Args:
        work: the folder; it is made when something is purged.

    Raises:
        UserError: what it remembers cannot be read.
    """

    def __init__(self, work: Path) -> None:
        self.path = work / FILE
        self.salt, self.digests = secrets.token_hex(16), frozenset[str]()
        try:
            kept = json.loads(self.path.read_bytes())
            self.salt, self.digests = str(kept["salt"]), frozenset(map(str, kept["digests"]))
        except FileNotFoundError:
            pass  # nothing was purged
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}: the list of what was purged is damaged ({error}); restore it, or purge again") from error

    def person(self, name: str) -> bool:
        """Whether a person was purged."""
        return bool(self.digests) and self._digest(["person", name]) in self.digests

    def stretch(self, content: str, source: Source) -> bool:
        """Whether a stretch of a video was purged; ``content`` is the SHA-256 of the file."""
        return bool(self.digests) and self._digest(_stretch(content, source)) in self.digests

    def bury(self, people: Iterable[str], stretches: Iterable[tuple[str, Source]]) -> None:
        """Remember people by name and stretches (hash of the content, source); on the disk when this returns.

        Raises:
            UserError: the folder cannot be written.
        """
        facts = [["person", name] for name in people if name] + [_stretch(content, source) for content, source in stretches if content]
        self.digests |= {self._digest(one) for one in facts}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps({"salt": self.salt, "digests": sorted(self.digests)}).encode())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); check its permissions and purge again") from error

    def _digest(self, facts: list[Any]) -> str:
        return hashlib.sha256(json.dumps([self.salt, *facts]).encode()).hexdigest()


def _stretch(content: str, source: Source) -> list[Any]:
    return ["stretch", content, source.start, source.end, source.meta.get(BOX)]
