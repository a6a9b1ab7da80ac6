#!/bin/bash
# The copy engine's C test for arm64, cross-compiled and run under user-mode emulation.
# Fails, and says what to install, where the cross compiler or the emulator is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
compiler=${AARCH64_CC:-aarch64-linux-gnu-gcc}
emulator=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
missing=()
command -v "$compiler" >/dev/null || missing+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
[ -n "$emulator" ] || missing+=(qemu-user-static)
if [ ${#missing[@]} -gt 0 ]; then
    echo "tests/native: the arm64 test needs ${missing[*]}: apt install ${missing[*]}" >&2
    exit 1
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
sources=(tests/native/copy_test.c)
for f in gpudirect/_native/*.c; do
    grep -q '"objects.h"' "$f" || sources+=("$f") # what is Python's has tests of its own
done
echo "== aarch64, emulated"
"$compiler" -g -O3 -std=gnu11 -Wall -Wextra -Werror -fno-strict-aliasing -static \
    -fno-tree-loop-distribute-patterns -Igpudirect/_native -Ip2pmod -pthread "${sources[@]}" -o "$out/arm64"

# a device is outside the CPUs' inner shareable domain: the fences must reach the outer one
fences=$("${compiler%gcc}objdump" -d --no-show-raw-insn "$out/arm64")
for want in 'gd_fence dsb\sst' 'gd_load_fence dmb\sosh$'; do
    sed -n "/<${want% *}>:/,/ret/p" <<<"$fences" | grep -qP "${want#* }" || {
        echo "tests/native: ${want% *} does not contain ${want#* }" >&2
        exit 1
    }
done
result=$("$emulator" "$out/arm64")
echo "$result"
grep -q '^neon .* checks$' <<<"$result" || {
    echo "tests/native: the NEON engine was not tested" >&2
    exit 1
}
