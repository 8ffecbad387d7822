"""The node tree of a VRML 2 text; lists of numbers stay text until they are needed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from schemas.samples import Code, RejectedSample

MAX_DEPTH = 100

_COMMENTS = re.compile(rb'"(?:[^"\\]|\\.)*"|#[^\r\n]*', re.S)
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]|[^\s,\[\]{}"]+', re.S)


@dataclass
class Node:
    """One VRML node: its fields hold nodes, lists of nodes, or the text of their values."""

    kind: bytes
    fields: dict[bytes, Node | list[Node] | bytes]
    name: str = ""
    """From DEF."""


def parse_vrml(data: bytes) -> list[Node]:
    """The top nodes of a file."""
    text = _COMMENTS.sub(lambda m: m[0] if m[0][:1] == b'"' else b"", data)
    return _Parser(text).file()


class _Parser:
    """Recursive descent over the tokens; lists of numbers stay text until they are needed."""

    def __init__(self, text: bytes):
        self.text = text
        self.at = 0
        self.named: dict[bytes, Node] = {}

    def next(self) -> bytes:
        match = _TOKENS.search(self.text, self.at)
        if match is None:
            raise RejectedSample(Code.DECODE, "truncated VRML: the file ends within a node")
        self.at = match.end()
        return match[0]

    def peek(self) -> bytes:
        match = _TOKENS.search(self.text, self.at)
        return b"" if match is None else match[0]

    def file(self) -> list[Node]:
        nodes = []
        while token := self.peek():
            if token == b"ROUTE":
                self.route()
                continue
            node = self.node(0)
            if node is not None:
                nodes.append(node)
        return nodes

    def route(self) -> None:
        for _ in range(4):
            self.next()

    def node(self, depth: int) -> Node | None:
        if depth > MAX_DEPTH:
            raise RejectedSample(Code.DECODE, f"VRML nodes are nested more than {MAX_DEPTH} deep")
        token = self.next()
        if token == b"NULL":
            return None
        if token == b"USE":
            name = self.next()
            if name not in self.named:
                raise RejectedSample(
                    Code.DECODE, f"VRML USE of {name.decode('latin-1')!r}, not defined"
                )
            return self.named[name]
        name = b""
        if token == b"DEF":
            name, token = self.next(), self.next()
        if token in (b"PROTO", b"EXTERNPROTO"):
            raise RejectedSample(
                Code.DECODE, "VRML prototypes (PROTO) are not read; expand them first"
            )
        if not token[:1].isalpha() or self.next() != b"{":
            raise RejectedSample(
                Code.DECODE, f"VRML: {token[:40].decode('latin-1')!r} where a node should begin"
            )
        node = Node(token, {}, name.decode("utf-8", "replace"))
        if name:
            self.named[name] = node
        while (word := self.next()) != b"}":
            if word == b"ROUTE":
                self.at -= len(word)
                self.route()
            elif word in (b"field", b"eventIn", b"eventOut", b"exposedField"):  # of a Script
                self.next()
                if word in (b"field", b"exposedField"):
                    node.fields[self.next()] = self.value(depth)
                else:
                    self.next()
            elif not word[:1].isalpha() and word[:1] != b"_":
                raise RejectedSample(
                    Code.DECODE, f"VRML: {word[:40].decode('latin-1')!r} where a field should begin"
                )
            else:
                node.fields[word] = self.value(depth)
        return node

    def value(self, depth: int) -> Node | list[Node] | bytes | None:
        token = self.peek()
        if token == b"[":
            return self.list(depth)
        if _is_plain(token):
            start = None
            while _is_plain(self.peek()):
                match = _TOKENS.search(self.text, self.at)
                start = match.start() if start is None else start
                self.at = match.end()
            return self.text[start : self.at]
        return self.node(depth + 1)

    def list(self, depth: int) -> list[Node] | bytes:
        self.next()
        end = self.text.find(b"]", self.at)
        if end < 0:
            raise RejectedSample(Code.DECODE, "truncated VRML: the file ends within a list")
        inner = self.text[self.at : end]
        if b"{" not in inner and b'"' not in inner and b"USE" not in inner:
            self.at = end + 1
            return inner
        nodes: list[Node] = []
        while self.peek() != b"]":
            if _is_plain(self.peek()):
                self.next()
                continue
            node = self.node(depth + 1)
            if node is not None:
                nodes.append(node)
        self.next()
        return nodes


def _is_plain(token: bytes) -> bool:
    return token[:1] in _PLAIN or token in (b"TRUE", b"FALSE")


_PLAIN = frozenset(bytes([c]) for c in b'+-.0123456789"')
