# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Header values and other credentials in the agent's configuration: hidden, taken out, put back.

Hosts need not have PyYAML, and a file that somebody has edited need not be valid. So text is read
line by line, in the form that the roles write: block style, one key or list item a line, and no
anchors. From the first line in another form on, nothing is shown and nothing is taken out.
"""

from __future__ import annotations

import re

HIDDEN = "(hidden)"
CHANGED = "(hidden, changed)"
REST = "# The rest is not in the form that the roles write, and is not shown."

_KEY = re.compile(r"""( *)((?:- )*)([\w./-]+|"[^"\\]*"|'[^']*'):(?: +(\S.*?))? *$""")
_ITEM = re.compile(r"( *)((?:- )+)(\S.*?) *$")
_PLAIN = r"""[^\s\[\]{}&*!|>%@`"'#,?-][^\[\]{}"'`]*|-?\d[\d.]*"""
_SCALAR = re.compile(r"""\[\]|\{\}|"[^"\\]*"|'[^']*'|""" + _PLAIN)
_NAME = re.compile(r"header|authori[sz]|token|secret|passw|credential|api.?key|cookie", re.I)
_SWITCH = ("auto", "off", "on", "true", "false", "null")
_USER = re.compile(r"://[^/\s]*@")


class Line:
    """One line of a configuration, or a header value of several. `path` names a credential."""

    def __init__(self, text, *, path=None, value=(), indent=0):
        self.text = text  # with a credential: all in front of it
        self.path = path
        self.indent = indent
        self.value = tuple(value)  # as it stands in the file, the first piece beside its key


def read_lines(text):
    """(lines but comments, whether all of them are in the form that the roles write)."""
    lines, parents, inside, closing = [], [], None, None
    # parents: [(indent, key)]; inside: indent of `headers`; closing: what a value still waits for
    for raw in text.rstrip("\n").split("\n"):
        bare = raw.strip()
        indent = len(raw) - len(raw.lstrip(" "))
        last = lines[-1] if lines else None
        if inside is not None and last.path and (not bare or indent > last.indent):
            last.value += (raw,)  # a value that goes on in the next line
            closing = None if closing and bare.endswith(closing) else closing
            continue
        if closing:
            return lines, False  # it goes on although it is no deeper
        item_of_it = indent == inside and bare.startswith("-")  # a list need not be deeper
        if inside is not None and bare and indent <= inside and not item_of_it:
            inside = None
        if not bare or raw == "---":
            lines.append(Line(raw))
            continue
        if bare.startswith("#"):
            continue  # it may say what the credential was
        key = _KEY.match(raw)
        if key is None:
            item = _ITEM.match(raw)
            if inside is None and item and is_plain(item.group(3)):
                lines.append(Line(raw))
                continue
            return lines, False
        name, value = key.group(3).strip("\"'"), key.group(4)
        depth = indent + len(key.group(2))
        parents = [parent for parent in parents if parent[0] < depth]
        path = (*(parent[1] for parent in parents), name)
        parents.append((depth, name))
        if inside is not None or (value and is_credential(name, value)):
            if value and not is_plain(value) and inside is None:
                return lines, False
            front = raw[: key.start(4)] if value else raw + " "
            lines.append(Line(front, path=path, value=[value or ""], indent=indent))
            closing = unclosed(value or "")
        elif value is None:
            inside = depth if _NAME.search(name) else None
            lines.append(Line(raw))
        elif is_plain(value):
            lines.append(Line(raw))
        else:
            return lines, False
    return lines, closing is None


def unclosed(value):
    """The sign that ends a value which does not end in its line, or None."""
    sign = {'"': '"', "'": "'", "{": "}", "[": "]"}.get(value[:1])
    return sign if sign and not (len(value) > 1 and value.endswith(sign)) else None


def is_plain(value):
    """Is it a value that ends where its line ends, and is nothing but itself?"""
    return _SCALAR.fullmatch(value) is not None and " #" not in value and ": " not in value


def is_credential(name, value):
    """Is this value to be hidden? A switch such as `headers: auto` is not."""
    word = value.strip("\"'").lower()
    if word in _SWITCH or value in ("{}", "[]"):
        return False
    return value == HIDDEN or bool(_NAME.search(name) or _USER.search(value))


def values(text):
    """{path: value} of the credentials, or None where one cannot be told from another.

    A path is the keys that lead to it, a value the text in its lines.
    """
    lines, is_known = read_lines(text)
    found = {line.path: line.value for line in lines if line.path}
    alike = len(found) == sum(1 for line in lines if line.path)
    return found if is_known and alike else None


def hide(text, *, before=None):
    """The text for a diff, without credentials and comments.

    Credentials that differ from those in the text `before` are marked.
    """
    if not text:
        return ""
    known = values(before) if before is not None else None
    lines, is_known = read_lines(text)
    shown = []
    for line in lines:
        if line.path is None:
            shown.append(line.text)
            continue
        earlier = (known or {}).get(line.path, line.value)
        shown.append(line.text + (HIDDEN if earlier == line.value else CHANGED))
    if not is_known:
        shown.append(REST)
    return "".join(f"{line}\n" for line in shown)


def take_out(text):
    """The text without its credentials, or None where they cannot be told from the rest."""
    if values(text) is None:
        return None
    lines, _is_known = read_lines(text)
    return "".join(f"{line.text}{HIDDEN if line.path else ''}\n" for line in lines)


def put_back(skeleton, present):
    """(a text without credentials made whole with those of another, the names it lacks)."""
    known = values(present) or {}
    lines, _is_known = read_lines(skeleton)
    lacking, whole = [], []
    for line in lines:
        if line.path is None:
            whole.append(line.text)
        elif line.path in known:
            first, *others = known[line.path]
            whole += [line.text + first, *others]
        else:
            lacking.append(".".join(line.path))
    return "".join(f"{line}\n" for line in whole), lacking


def scrub(message, *texts):
    """A message about configurations, without the credentials that stand in them."""
    for text in texts:
        for pieces in (values(text or "") or {}).values():
            for piece in pieces:
                word = piece.strip().strip("\"'")
                if len(word) > 3:  # a shorter one is no secret
                    message = message.replace(word, HIDDEN)
    return message
