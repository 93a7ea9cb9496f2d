"""The container's health check: exits with 0 if the server and every model in it are ready, else with an exception."""

import urllib.request

URL = "http://127.0.0.1:8000/v2/health/ready"
TIMEOUT_S = 2.0

if __name__ == "__main__":
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with no_proxy.open(URL, timeout=TIMEOUT_S):
        pass
