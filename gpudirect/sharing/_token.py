"""``Token``: what lets another process of the same user map an array."""

from __future__ import annotations

from ..errors import ArgumentError

MODES = {"r": "read-only", "rw": "for reading and writing", "call": "for calls"}
_SIGNS = "gpudirect-token-"
_SIGN = _SIGNS + "1"


class Token:
    """Plain text: send it as it is, by pickle or as ``str(token)``. Whoever has it may attach, if he
    is the same user; keep it as you would keep a password."""

    __slots__ = ("mode", "nbytes", "pid", "secret", "socket")

    def __init__(self, socket: str, secret: str, pid: int, mode: str, nbytes: int) -> None:
        self.socket = socket
        """Name of the owner's socket, in the abstract namespace."""
        self.secret = secret
        self.pid = pid
        """The owner's process."""
        self.mode = mode
        """"r" or "rw" of an array, "call" of a service's lane."""
        self.nbytes = nbytes
        """Bytes of the array."""

    @classmethod
    def parse(cls, text: object) -> Token:
        """The token that a text is. Raises ArgumentError."""
        if isinstance(text, Token):
            return text
        parts = text.split(":") if isinstance(text, str) else []
        if len(parts) == 6 and parts[0] == _SIGN and parts[4] in MODES:
            socket, secret, pid, mode, nbytes = parts[1:]
            if pid.isdecimal() and nbytes.isdecimal():
                return cls(socket, secret, int(pid), mode, int(nbytes))
        if parts and parts[0].startswith(_SIGNS) and parts[0] != _SIGN:
            raise ArgumentError(f"a {parts[0][:40]} is a token of another version of gpudirect, and this one "
                                f"gives a {_SIGN}: install one version on both sides")  # fmt: skip
        shown = f"a text of {len(text)} characters" if isinstance(text, str) else type(text).__name__
        raise ArgumentError(f"{shown} is no token: give what array.share() gave, or its str()")

    def __str__(self) -> str:
        return f"{_SIGN}:{self.socket}:{self.secret}:{self.pid}:{self.mode}:{self.nbytes}"

    def __repr__(self) -> str:
        # the secret stays out of logs
        limit = "; protects from mistakes, not from malice" if self.mode == "r" else ""
        what = "a lane" if self.mode == "call" else f"{self.nbytes} bytes"
        return f"<Token for {what} of process {self.pid}, {MODES[self.mode]}{limit}>"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Token.parse, (str(self),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))
