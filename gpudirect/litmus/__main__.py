"""``python -m gpudirect.litmus``: play the litmus tests; exit status 1 if a promise is broken."""

from __future__ import annotations

import argparse
import sys

import gpudirect as gd

from . import ALL


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gpudirect.litmus", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which [all]: {', '.join(ALL)}")
    parser.add_argument("--rounds", type=int, default=10_000, help="of each test [%(default)s]")
    parser.add_argument("--device", default=None, help="cuda, emulated, ... [the first GPU]")
    options = parser.parse_args()
    for name in options.names:
        if name not in ALL:
            parser.error(f"there is no litmus test {name!r}; there are {', '.join(ALL)}")
    print(gd.device(options.device))
    broken = 0
    for name in options.names or ALL:
        if not ALL[name].offered(gd.device(options.device)):
            print(f"{name:32} the device does not offer it (its ordering attributes)")
            continue
        outcome = ALL[name].run(options.rounds, options.device)
        ours = outcome.fine or (outcome.emulated and not ALL[name].holds_emulated)
        broken += not ours
        mark = " (emulated)" if outcome.emulated else ""
        print(
            f"{name:32} {outcome.standing:13} {outcome.violations:8} of {outcome.rounds} out of "
            f"order, {outcome.seconds:.1f} s{mark}{'' if ours else '  BROKEN'}", flush=True,
        )  # fmt: skip
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
