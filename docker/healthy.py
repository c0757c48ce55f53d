"""``healthy URL``: end with 0 if the URL answers with success within two seconds, for health checks.

With STOPLOG_TLS_CERT_FILE, the gateway speaks HTTPS. Its certificate is not checked: the connection does not
leave the container. STOPLOG_CLIENT_CERT_FILE and STOPLOG_CLIENT_KEY_FILE name a client certificate.
"""

import os
import ssl
import sys
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

_TIMEOUT_S = 2

url = sys.argv[1]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
try:
    if os.environ.get("STOPLOG_TLS_CERT_FILE"):
        url = url.replace("http:", "https:", 1)
        if cert := os.environ.get("STOPLOG_CLIENT_CERT_FILE"):
            context.load_cert_chain(cert, os.environ.get("STOPLOG_CLIENT_KEY_FILE") or None)
    with build_opener(ProxyHandler({}), HTTPSHandler(context=context)).open(url, timeout=_TIMEOUT_S):
        pass  # it raises if the status is not 2xx
except OSError as exc:
    sys.exit(f"{url}: {exc}")
