"""Django's own commands: `python manage.py runserver`."""

from __future__ import annotations

import sys

import django_site  # noqa: F401 - configures Django
from django.core.management import execute_from_command_line

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
