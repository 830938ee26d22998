# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Credentials in the agent's configuration, such as header values: hidden, taken out, put back.

A host may have no PyYAML, and an edited file may be invalid. So the text is read line by line, in
the form that the roles write: block style, one key or list item on each line, no anchors. After the
first line in another form, nothing is shown and nothing is taken out.
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
    """One line, or a header value of several lines. A credential has a `path`, its keys."""

    def __init__(self, text, *, path=None, value=(), indent=0):
        self.text = text  # of a credential: the text in front of its value
        self.path = path
        self.indent = indent
        self.value = tuple(value)  # its pieces, line by line as in the file


def read_lines(text):
    """(lines without comments, whether all lines are in the form that the roles write)."""
    lines, parents, inside, closing = [], [], None, None
    # parents: [(indent, key)]; inside: the indent of the present `headers` or None;
    # closing: the sign that ends the present value or None
    for raw in text.rstrip("\n").split("\n"):
        bare = raw.strip()
        indent = len(raw) - len(raw.lstrip(" "))
        last = lines[-1] if lines else None
        if inside is not None and last.path and (not bare or indent > last.indent):
            last.value += (raw,)  # the value continues on this line
            closing = None if closing and bare.endswith(closing) else closing
            continue
        if closing:
            return lines, False  # the value continues although this line is not indented more
        is_item = indent == inside and bare.startswith("-")  # YAML allows it
        if inside is not None and bare and indent <= inside and not is_item:
            inside = None
        if not bare or raw == "---":
            lines.append(Line(raw))
            continue
        if bare.startswith("#"):
            continue  # a comment may hold an old credential
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
    """The sign that ends a value which continues on the next line, or None."""
    sign = {'"': '"', "'": "'", "{": "}", "[": "]"}.get(value[:1])
    return sign if sign and not (len(value) > 1 and value.endswith(sign)) else None


def is_plain(value):
    """Returns whether a value is a plain or quoted scalar that ends with its line."""
    return _SCALAR.fullmatch(value) is not None and " #" not in value and ": " not in value


def is_credential(name, value):
    """Returns whether a value has to be hidden. A switch such as `headers: auto` has not."""
    word = value.strip("\"'").lower()
    if word in _SWITCH or value in ("{}", "[]"):
        return False
    return value == HIDDEN or bool(_NAME.search(name) or _USER.search(value))


def values(text):
    """{path: value} of the credentials, or None where two cannot be told apart.

    A path is the keys that lead to the value. A value is the text on its lines.
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
    """(a text with the credentials of another text put back, names without a credential)."""
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
    """A message without the credentials of these configurations."""
    for text in texts:
        for pieces in (values(text or "") or {}).values():
            for piece in pieces:
                word = piece.strip().strip("\"'")
                if len(word) > 3:  # a shorter value is not a secret
                    message = message.replace(word, HIDDEN)
    return message
