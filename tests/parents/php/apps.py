"""PHP-FPM behind nginx and Apache, on a Unix socket and by TCP, and PHP inside of Apache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.parents import apache
from tests.parents.app import SERVICE, App, Behaviour, Place, Process
from tests.parents.debian import installs_all

_FOLDER = Path(__file__).parent
_VERSION = "8.2"
_PACKAGES = [f"php{_VERSION}-{name}" for name in ("fpm", "curl", "redis")]


_APACHE = """\
DocumentRoot {folder}
<Directory {folder}>
Require all granted
</Directory>
RewriteEngine On
RewriteRule .* {folder}/index.php [L]
<FilesMatch \\.php$>
SetHandler "{handler}"
</FilesMatch>
"""
_PROXY = ("mpm_event", "proxy", "proxy_fcgi")
_INSIDE = f"""\
LoadModule php_module /usr/lib/apache2/modules/libphp{_VERSION}.so
StartServers 8
MaxRequestWorkers 16
"""


def _write(place: Place, *names: str, listen: str = "", to: str = "") -> None:
    """The program, and configurations in which names in braces are replaced.

    `listen` is where PHP-FPM listens, `to` what nginx calls that.
    """
    program = place.folder / "index.php"
    program.write_bytes((_FOLDER / program.name).read_bytes())
    for name in names:
        text = (_FOLDER / name).read_text(encoding="utf-8")
        filled = text.format(port=place.port, folder=place.folder, listen=listen, to=to)
        (place.folder / name).write_text(filled, encoding="utf-8")


def _socket(place: Place) -> Path:
    return place.folder / "fpm.sock"


def _tcp(place: Place) -> str:
    return f"127.0.0.1:{place.spare}"


def _fpm(place: Place, *, tcp: bool = False) -> Process:
    words = ["--nodaemonize", "--fpm-config", str(place.folder / "fpm.conf")]
    listens = place.spare if tcp else _socket(place)
    return Process([f"php-fpm{_VERSION}", *words], name="fpm", listens=listens)


def _apache(place: Place, modules: Sequence[str], handler: str, more: str = "") -> Process:
    file = place.folder / "apache.conf"
    more += _APACHE.format(folder=place.folder, handler=handler)
    text = apache.configuration(place.folder, place.port, (*modules, "rewrite"), more)
    # who may connect to the socket of PHP-FPM
    text = text.replace("User nobody\nGroup nogroup", "User www-data\nGroup www-data")
    file.write_text(text, encoding="utf-8")
    return Process(["apache2", "-D", "FOREGROUND", "-f", str(file)], name="apache")


def _behind_nginx(place: Place) -> Sequence[Process]:
    _write(place, "nginx.conf", "fpm.conf", listen=str(_socket(place)), to=f"unix:{_socket(place)}")
    return [_nginx(place), _fpm(place)]


def _behind_nginx_by_tcp(place: Place) -> Sequence[Process]:
    _write(place, "nginx.conf", "fpm.conf", listen=_tcp(place), to=_tcp(place))
    return [_nginx(place), _fpm(place, tcp=True)]


def _nginx(place: Place) -> Process:
    words = ["nginx", "-p", str(place.folder), "-c", str(place.folder / "nginx.conf")]
    return Process(words, name="nginx")


def _behind_apache(place: Place) -> Sequence[Process]:
    _write(place, "fpm.conf", listen=str(_socket(place)))
    handler = f"proxy:unix:{_socket(place)}|fcgi://localhost"
    return [_apache(place, _PROXY, handler), _fpm(place)]


def _behind_apache_by_tcp(place: Place) -> Sequence[Process]:
    _write(place, "fpm.conf", listen=_tcp(place))
    return [_apache(place, _PROXY, f"proxy:fcgi://{_tcp(place)}"), _fpm(place, tcp=True)]


def _inside(place: Place) -> Sequence[Process]:
    _write(place)
    return [_apache(place, ("mpm_prefork",), "application/x-httpd-php", _INSIDE)]


def _app(name: str, title: str, start: Callable[[Place], Sequence[Process]], *packages: str) -> App:
    return App(
        name=name,
        runtime="PHP",
        title=title,
        start=start,
        behaviours=tuple(one for one in SERVICE if one is not Behaviour.POLLER),
        install=installs_all(*_PACKAGES, *packages),
    )


APPS = (
    _app("php-fpm", "nginx, PHP-FPM by Unix socket, curl", _behind_nginx),
    _app("php-fpm-apache", "Apache, PHP-FPM by Unix socket, curl", _behind_apache, "apache2-bin"),
    _app("php-fpm-tcp", "nginx, PHP-FPM by TCP, curl", _behind_nginx_by_tcp),
    _app(
        "php-fpm-apache-tcp", "Apache, PHP-FPM by TCP, curl", _behind_apache_by_tcp, "apache2-bin"
    ),
    _app("mod-php", "PHP in Apache (mod_php), curl", _inside, f"libapache2-mod-php{_VERSION}"),
)
