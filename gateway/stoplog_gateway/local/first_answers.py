"""Find out whether a gateway gets its checks answered, for the end of a start."""

from __future__ import annotations

import httpx


def reason_not_ready(client: httpx.Client, url: str) -> str | None:
    """Return why some partition never answered the gateway at *url*; ``None`` if all of them did.

    The route needs no token, whatever the settings of the gateway are.
    """
    try:
        response = client.get(f"{url}/readyz", params={"strict": "1"})
        return None if response.is_success else str(response.json()["detail"])
    except (httpx.HTTPError, ValueError, LookupError):
        return "the gateway starts"
