"""``attach``: to an array of another process, or to a service of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .sharing import Attached, Token
from .sharing import attach as attach_array

if TYPE_CHECKING:
    from .service._attached import AttachedService


def attach(token: Token | str, *, timeout: float = 10.0) -> Attached | AttachedService:
    """What a process of the same user shared: ``array.share()`` gives an ``Attached``, whose memory is
    mapped here, ``service.share_lane()`` an ``AttachedService``, whose functions are called from here.

    Needs neither CUDA nor NumPy, and makes no CUDA context. token: what they gave, or its str().
    timeout: seconds that the owner may take to answer.
    Raises SharingError (the owner is gone, another user, the token was used already), ArgumentError
    (no token), BridgeError or ApertureError (the memory cannot be mapped here).
    """
    token = Token.parse(token)
    if token.mode == "call":
        from .service._attached import attach_service

        return attach_service(token, timeout)
    return attach_array(token, timeout=timeout)
