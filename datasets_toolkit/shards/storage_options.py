"""Options of object stores, such as keys, for as long as a command runs.

fsspec takes defaults for its file systems from the environment (``FSSPEC_S3='{"key": ...}'``) and from ``~/.config/fsspec/*.json``. Options
of the command line are set in the same two places: in this process and in the environment of those that it starts. So no job, manifest or
unit carries them, and no path leads from them to a file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from datasets_toolkit.errors import UserError

HELP = "option of the object store (fsspec), such as key=..., secret=..., endpoint_url=...; may be repeated; never written or shown"

_WORD = re.compile(r"^(?:(?P<protocol>[A-Za-z][A-Za-z0-9+\-]*):)?(?P<key>[A-Za-z_][\w.]*)=(?P<value>.*)$", re.DOTALL)
_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]+(://|::)")
_OPEN = ("url", "endpoint", "region", "protocol", "anon", "project", "account_name")
"""Options whose values may be shown: their names end in one of these."""


@contextmanager
def storage_options(words: Sequence[str], addresses: Iterable[object] = ()) -> Iterator[None]:
    """Hold options of object stores inside.

    Args:
        words: ``KEY=VALUE``, or ``PROTOCOL:KEY=VALUE`` where addresses of several protocols are used. Dots lead into nested options
            (``client_kwargs.verify=false``). ``true``, ``false``, JSON lists and JSON objects are read as such, all else is text.
        addresses: paths and addresses of the command.

    Raises:
        UserError: a word is not of that form, or no address is there that it could belong to. The message shows no value.
    """
    if not words:
        yield
        return
    try:
        from fsspec.config import conf
    except ImportError as error:
        raise UserError("--storage-option needs the package fsspec; install it with: pip install fsspec") from error
    options = _parsed(words, _protocols(addresses))
    before = {protocol: conf.get(protocol) for protocol in options}
    variables = {protocol: os.environ.get(_variable(protocol)) for protocol in options}
    try:
        for protocol, values in options.items():
            conf[protocol] = _merged(conf.get(protocol, {}), values)
            os.environ[_variable(protocol)] = json.dumps(conf[protocol])
        yield
    finally:
        for protocol in options:
            _restore(conf, protocol, before[protocol])
            _restore(os.environ, _variable(protocol), variables[protocol])


def hidden(text: object) -> str:
    """A text, such as what an object store says of a failure, with ``***`` in place of every option's value that could be a secret."""
    import sys

    config = sys.modules.get("fsspec.config")  # without it nothing was configured
    shown = str(text)
    for secret in sorted(_secrets(getattr(config, "conf", {})), key=len, reverse=True):
        shown = shown.replace(secret, "***")
    return shown


def _parsed(words: Sequence[str], protocols: Sequence[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for word in words:
        match = _WORD.match(word)
        if match is None:
            raise UserError("--storage-option: one is not of the form KEY=VALUE (it is not shown, for it may be a secret); correct it")
        if match["protocol"] is None and len(protocols) != 1:
            found = f"addresses of {', '.join(protocols)} are used" if protocols else "no address such as s3://... is used"
            raise UserError(f"--storage-option {match['key']}: {found}; name the protocol that is meant, such as s3:{match['key']}=...")
        place = options.setdefault((match["protocol"] or protocols[0]).lower(), {})
        *outer, last = match["key"].split(".")
        for name in outer:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise UserError(f"--storage-option {match['key']}: {name} has a value already; give it once")
        place[last] = _value(match["value"])
    return options


def _value(text: str) -> Any:
    if text in ("true", "false") or text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError:
            pass  # a secret may begin with a bracket
    return text


def _protocols(addresses: Iterable[object]) -> list[str]:
    texts = [str(address) for address in addresses if isinstance(address, str) and _ADDRESS.match(address)]
    found = {text.partition("://")[0].rpartition("::")[2].lower() for text in texts}
    return sorted(found - {"file"})


def _variable(protocol: str) -> str:
    return f"FSSPEC_{protocol.upper()}"


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {name: _merged(old[name], value) for name, value in new.items() if isinstance(value, dict) and isinstance(old.get(name), dict)}
    return {**old, **new, **both}


def _restore(table: Any, name: str, value: Any) -> None:
    if value is None:
        table.pop(name, None)
    else:
        table[name] = value


def _secrets(options: Any, name: str = "") -> Iterator[str]:
    if isinstance(options, dict):
        for key, value in options.items():
            yield from _secrets(value, str(key))
    elif isinstance(options, str) and len(options) >= 4 and not name.lower().endswith(_OPEN):
        yield options
