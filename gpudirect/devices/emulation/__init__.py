"""The emulated GPU: a process of its own that runs CUDA C++ kernels on the CPU.

It is a stand-in, so that everything can be tried and tested without a GPU, and says so. What it
keeps of the real thing: device memory lies in another address space at the same addresses, a
bad pointer in a kernel ends the GPU and not the program, streams really are asynchronous, and
all threads of all resident blocks make progress, whatever they wait for.

- ``compiler.py`` compiles a kernel with the host's C++ compiler against ``cuda_shim.h``
- ``runtime.cpp`` runs a launch: blocks, threads, barriers, warps, faults
- ``gpu_process.py`` is the process, ``client.py`` the program's end of it
- ``memory.py``, ``streams.py`` and ``relayed.py`` are what the device ``emulated`` hands out of it
- ``signature.py`` and ``signature.h`` tell a kernel's parameters, on this device and on CUDA
"""
