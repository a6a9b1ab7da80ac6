"""Sharing with other processes: sockets, descriptors, containers."""

from __future__ import annotations

from ._machine import HEALTHY, Machine
from ._rules import LIMITS, NOTE, Seen, rule


@rule(
    "Memory cannot be shared with other processes", LIMITS,
    means="""Tokens are answered on a local socket, with the memory's descriptor beside the answer, and this
    process may not make one: a sandbox (seccomp, a systemd unit) leaves it none.""",
    costs="`a.share`, `svc.share_lane` and `gd.attach` raise SharingError. Nothing else needs sockets.",
    mend=["In a systemd unit: RestrictAddressFamilies=AF_UNIX lets these through; a seccomp profile must let "
          "socket, bind, connect, sendmsg and recvmsg through."],
    example=HEALTHY.where(local_sockets="Operation not permitted"),
)  # fmt: skip
def no_local_sockets(m: Machine) -> Seen:
    if m.local_sockets is None:
        return None
    return f"a socket of a name in the abstract namespace: {m.local_sockets}"


@rule(
    "Other containers cannot attach", NOTE,
    means="""The sockets on which tokens are answered belong to the container's network. A process outside of
    it, or in another one, does not find the owner; one of another user is refused everywhere.""",
    costs="`gd.attach(token)` raises SharingError there, as if the owner had ended. Inside, it works.",
    mend=["Give both the same network: docker run --network container:NAME ..., or --network host on both.",
          "Run both as the same user: docker run --user 1000:1000 ..."],
    example=HEALTHY.where(container="docker"),
)  # fmt: skip
def other_containers(m: Machine) -> Seen:
    if m.container and m.local_sockets is None and any(g.bridge for g in m.gpus):
        return f"this is a container ({m.container})"
    return None


FEW_DESCRIPTORS = 256


@rule(
    "Few files may be open", NOTE,
    means="""RLIMIT_NOFILE is low. What is shared takes one descriptor or two, each attached process one more,
    and a mapping some while it is made.""",
    costs="Where none is left, `share`, `attach` and new mappings raise an error that says the limit.",
    mend=["$ ulimit -n 4096    # or in /etc/security/limits.conf: * - nofile 4096",
          "In a container: docker run --ulimit nofile=4096 ..."],
    example=HEALTHY.where(descriptors=64),
)  # fmt: skip
def few_descriptors(m: Machine) -> Seen:
    if m.descriptors is not None and m.descriptors < FEW_DESCRIPTORS:
        return f"the limit is {m.descriptors}"
    return None
