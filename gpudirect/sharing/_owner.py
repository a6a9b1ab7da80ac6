"""The owner's side: one thread that hands descriptors to whoever has a token."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from .._descriptors import telling
from ..bridges import Source
from ..errors import SharingError
from . import _wire
from ._token import Token


class Share:
    """What one token stands for: an array with a right, or a lane of a service."""

    __slots__ = ("descriptors", "end", "peers", "said", "used_by", "uses")

    def __init__(self, descriptors: tuple[int, ...], uses: int | None, said: dict[str, Any]) -> None:
        self.descriptors = descriptors
        """Name the memory; closed when it is shared no more."""
        self.end: Callable[[], None] | None = None
        """Takes the token back."""
        self.uses = uses
        """Processes that may still attach; None: any number."""
        self.said = said
        """What an attaching process is told: "mode", "pid", "nbytes" and what it is to map."""
        self.peers: dict[socket.socket, int] = {}
        """Who is attached: connection -> process."""
        self.used_by = 0


def _fingerprint(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="replace")).digest()


def _refused(message: str, number: int) -> SharingError:
    return SharingError(message)


class Server:
    """Answers on one socket. Everything but ``offer`` runs on its thread."""

    def __init__(self) -> None:
        self._shares: dict[bytes, Share] = {}  # by what the secret hashes to
        self._jobs: list[Callable[[], None]] = []
        with contextlib.ExitStack() as undo, telling("sharing memory with other processes", _refused):
            self._listener, self._name = _wire.named()
            undo.enter_context(self._listener)
            self._listener.listen(64)
            self._woken, self._waker = map(undo.enter_context, socket.socketpair())
            self._waker.setblocking(False)
            self._selector = undo.enter_context(selectors.DefaultSelector())
            undo.pop_all()
        self._selector.register(self._listener, selectors.EVENT_READ, self._welcome)
        self._selector.register(self._woken, selectors.EVENT_READ, self._work)
        threading.Thread(target=self._serve, name="gpudirect sharing", daemon=True).start()

    # -- on any thread -----------------------------------------------------------------------

    def offer(self, share: Share) -> tuple[Token, Callable[[], None]]:
        """A token for it, and what ends it: takes back the token and tells who is attached."""
        secret = secrets.token_hex(32)
        key = _fingerprint(secret)
        self._shares[key] = share
        token = Token(self._name, secret, os.getpid(), share.said["mode"], share.said["nbytes"])
        return token, lambda: self._post(lambda: self._end(key))

    def _post(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        with contextlib.suppress(OSError):  # full: it will wake anyway; closed: after a fork
            self._waker.send(b"\0")

    def close_here(self) -> None:
        """In a child of fork(): the parent goes on with all of it."""
        for share in self._shares.values():
            for connection in share.peers:
                connection.close()
            for fd in share.descriptors:
                os.close(fd)
        for each in (self._listener, self._woken, self._waker, self._selector):
            each.close()

    # -- on the thread -----------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                try:
                    key.data(key.fileobj)
                except Exception:  # he went away in the middle, or sent what nothing here foresaw
                    if key.fileobj not in (self._listener, self._woken):
                        self._forget(key.fileobj)  # type: ignore[arg-type]

    def _work(self, woken: socket.socket) -> None:
        woken.recv(4096)
        while self._jobs:
            self._jobs.pop(0)()

    def _welcome(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # no descriptor is left (EMFILE): whoever waits goes on waiting
            time.sleep(0.05)
            return
        connection.settimeout(5)
        _, user = _wire.peer(connection)
        if user == os.getuid():
            self._selector.register(connection, selectors.EVENT_READ, self._answer)
            return
        with contextlib.suppress(OSError), connection:  # others take no descriptor of ours for longer
            _wire.send(connection, refused=f"the array belongs to user {os.getuid()}, and you are user {user}")

    def _answer(self, connection: socket.socket) -> None:
        """What somebody new asks."""
        asked, _ = _wire.receive(connection)
        pid, _ = _wire.peer(connection)
        share = self._shares.get(_fingerprint(str(asked.get("secret"))))
        refused = ""
        if share is None:
            refused = "its owner closed the array, or never shared it with this token"
        elif share.uses == 0:
            refused = (f"this token was used already, by process {share.used_by}: each one admits as "
                       "many as share(uses=...) said, 1 by default. Ask the owner for another")  # fmt: skip
        if refused or share is None:
            _wire.send(connection, refused=refused)
            self._forget(connection)
            return
        share.peers[connection] = pid  # before he hears of it: who is attached is among the peers
        _wire.send(connection, share.descriptors, protocol=_wire.PROTOCOL, **share.said)
        share.used_by = pid
        if share.uses is not None:
            share.uses -= 1
        # nothing else comes from there but its end
        self._selector.modify(connection, selectors.EVENT_READ, self._forget)

    def _forget(self, connection: socket.socket) -> None:
        for share in tuple(self._shares.values()):
            share.peers.pop(connection, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection)
        connection.close()

    def _end(self, key: bytes) -> None:
        share = self._shares.pop(key, None)
        if share is None:
            return
        for connection in tuple(share.peers):
            with contextlib.suppress(OSError):
                _wire.send(connection, closed=True)
            self._forget(connection)
        share.peers.clear()
        for fd in share.descriptors:
            os.close(fd)


def placed(memory: Source, offset: int, nbytes: int) -> dict[str, Any]:
    """Where bytes lie in a block of device memory, for who is to map them."""
    return {"block": memory.ptr, "size": memory.size, "pci_address": memory.pci_address,
            "offset": offset, "nbytes": nbytes}  # fmt: skip


def read_only(descriptor: int) -> int:
    """The same file, opened for reading; the descriptor given is closed."""
    try:
        with telling("opening memory once more, for reading", _refused):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(descriptor)


_server: Server | None = None
_making = threading.Lock()


def server() -> Server:
    """The one of this process, made when something is shared first. Raises SharingError."""
    global _server
    with _making:
        if _server is None:
            try:
                _server = Server()
            except (OSError, RuntimeError) as e:
                raise SharingError(f"no socket or thread for sharing: {e}; see ulimit -n and -u") from e
        return _server


def _after_fork_in_child() -> None:
    global _server, _making
    _making = threading.Lock()
    if _server is not None:
        _server.close_here()
        _server = None


os.register_at_fork(after_in_child=_after_fork_in_child)
