"""``healthy URL``: end with 0 if the URL answers with success within two seconds, for health checks."""

import sys
from urllib.request import ProxyHandler, build_opener

_TIMEOUT_S = 2

try:
    with build_opener(ProxyHandler({})).open(sys.argv[1], timeout=_TIMEOUT_S):  # raises if not 2xx
        pass
except OSError as exc:
    sys.exit(f"{sys.argv[1]}: {exc}")
