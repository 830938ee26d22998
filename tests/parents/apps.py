"""All applications of the bench, in the order of the grid."""

from __future__ import annotations

from tests.parents.app import App
from tests.parents.go.apps import APPS as GO
from tests.parents.java.apps import APPS as JAVA
from tests.parents.node.apps import APPS as NODE
from tests.parents.php.apps import APPS as PHP
from tests.parents.proxies.apps import APPS as PROXIES
from tests.parents.python.apps import APPS as PYTHON
from tests.parents.ruby.apps import APPS as RUBY
from tests.parents.rust.apps import APPS as RUST

APPS: tuple[App, ...] = (*PYTHON, *NODE, *JAVA, *RUBY, *PHP, *RUST, *GO, *PROXIES)


def named(name: str) -> App:
    """The application of this name. Raises ValueError where there is none."""
    (found,) = (app for app in APPS if app.name == name)
    return found
