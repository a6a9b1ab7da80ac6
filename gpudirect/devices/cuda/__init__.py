"""Device ``cuda``: NVIDIA GPUs through cuda-python.

Memory is made with ``cuMemCreate``: exportable as a file descriptor and marked
``gpuDirectRDMACapable``, so that every bridge can map every allocation.
"""

from ._driver import count
from .device import CudaDevice, near_cpus

__all__ = ["CudaDevice", "count", "near_cpus"]
