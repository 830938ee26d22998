"""A server of Werkzeug alone, for any Python: `/at-once` and `/sleep` of tests/parents/README.md.

What `app.run()` of Flask calls: `run_simple`, with the options that are words: `threaded`,
`use_reloader`.
"""

import http.client
import os
import sys
import time
from urllib.parse import urlsplit

from werkzeug.serving import run_simple

PORT, BACKEND = int(os.environ["PORT"]), urlsplit(os.environ["BACKEND"])


def serve(environ, start_response):
    if environ["PATH_INFO"] == "/sleep":
        time.sleep(0.01)
    connection = http.client.HTTPConnection(BACKEND.netloc)
    connection.request("GET", f"/call?{environ['QUERY_STRING']}")
    body = connection.getresponse().read()
    connection.close()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


run_simple("127.0.0.1", PORT, serve, **dict.fromkeys(sys.argv[1:], True))
