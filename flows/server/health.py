"""Is a Prefect server there?"""

import json
import urllib.error
import urllib.request


def responds(api: str) -> bool:
    """Does a server respond at this address of its API?"""
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=2) as reply:
            return json.load(reply) is True
    except (OSError, ValueError, urllib.error.URLError):
        return False
