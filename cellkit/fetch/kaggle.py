"""Who downloads from Kaggle: the user's name and key, given to Kaggle's hosts alone."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from cellkit.errors import UserError
from cellkit.fetch.registry import Entry

KAGGLE_HOSTS = ("www.kaggle.com", "127.0.0.1")  # the second is a test's server


def authorization_for(entry: Entry, address: str) -> str:
    """Return the header that signs the user in to Kaggle, and to nobody else; "" for everything else."""
    if not entry.kaggle:
        return ""
    if urlsplit(address).hostname not in KAGGLE_HOSTS:
        raise UserError(
            f"{entry.name} comes from Kaggle, not from a mirror", "unset CELLKIT_MIRROR, or use --from FILE"
        )
    user, key = kaggle_user()
    if not user:
        return f"Bearer {key}"
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode("ascii")


def kaggle_user() -> tuple[str, str]:
    """Return the user's Kaggle name and key, the name "" for a token of the new kind, which stands alone.

    Looked for are KAGGLE_API_TOKEN, KAGGLE_USERNAME and KAGGLE_KEY, ``~/.kaggle/access_token`` and
    ``~/.kaggle/kaggle.json``, in this order. They are sent to Kaggle alone, and neither printed nor written anywhere.

    Raises
    ------
    UserError
        There is no token, with how to get one; or the file is not one.
    """
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle")
    user, key = os.environ.get("KAGGLE_USERNAME", ""), os.environ.get("KAGGLE_KEY", "")
    if os.environ.get("KAGGLE_API_TOKEN", "").strip():
        return "", _token(os.environ["KAGGLE_API_TOKEN"], "KAGGLE_API_TOKEN")
    if user and key:
        return user, key
    if (folder / "access_token").is_file():
        path = folder / "access_token"
        return "", _token(path.read_text(encoding="utf-8", errors="replace"), str(path))
    path = folder / "kaggle.json"
    get = "make one at kaggle.com (Settings, API, Create New Token)"
    if not path.is_file():
        raise UserError(
            f"no Kaggle token: KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, are not set and {path} is not there",
            f"{get} and set KAGGLE_API_TOKEN to it, or download by hand and use --from FILE",
        )
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        user, key = told["username"], told["key"]
        good = isinstance(user, str) and isinstance(key, str) and user and key
    except (ValueError, KeyError, TypeError):  # said without what the file holds
        good = False
    if not good:
        raise UserError(f"{path} is no Kaggle token", get) from None
    return user, key


def _token(text: str, where: str) -> str:
    """Return a token: one word of plain letters, or the header it stands in would end early."""
    token = text.strip()
    if not (token.isascii() and token.isprintable() and token and " " not in token):
        raise UserError(f"{where} is no Kaggle token", "make one at kaggle.com (Settings, API, Create New Token)")
    return token
