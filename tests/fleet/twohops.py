"""Two hops of nginx on one host: what tests of one host send their requests through."""

from __future__ import annotations

# A command for a host with nginx. The second hop answers with the `traceparent` that it was sent.
START = """
cat >/etc/nginx/conf.d/proxy.conf <<'END'
server { listen 8080; location / { proxy_pass http://127.0.0.1:8081; } }
server { listen 8081; location / { return 200 "$http_traceparent\\n"; } }
END
systemctl restart nginx
"""
