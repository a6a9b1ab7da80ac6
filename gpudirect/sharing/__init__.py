"""Device memory in another process, without CUDA there.

The owner of an array made with ``shareable=True`` gives a token, and another process of the same
user attaches with it:

    token = array.share(mode="rw")                # send it: multiprocessing, a pipe, an argument
    with gpudirect.attach(token) as a:            # there: neither CUDA nor NumPy is imported
        a.write(data)                             # stores go straight to the GPU

A token is a Unix socket's name and a secret. Whoever attaches is sent a descriptor of the memory
over that socket, maps it, and keeps the socket open: so each side learns when the other one ends.
"""

from ._attached import Attached, attach
from ._token import Token

__all__ = ["Attached", "Token", "attach"]
