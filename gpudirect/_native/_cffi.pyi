"""cffi's module: what the headers of this folder declare (build.py). Checked where it is called."""

from typing import Any

ffi: Any
lib: Any
