"""Every exception that gpudirect raises on purpose.

    Error
     ├── ArgumentError (ValueError)       a size, offset, shape, dtype or option is wrong
     │    ├── DTypeError (TypeError)      a dtype or type of argument that cannot be used
     │    └── RangeError (IndexError)     bytes outside the array
     ├── ExportError (BufferError)        another library cannot have the memory in this way
     ├── ClosedError                      you closed it
     ├── RevokedError                     the driver took the pages back; you did not close it
     ├── ForkError                        the object belongs to the parent process
     ├── FrameworkError (ImportError)     another library is missing, too old, or cannot do it
     ├── DeviceError                      a device call failed (``code`` holds the driver's number)
     │    ├── DeviceNotFoundError         no such device, or no device at all
     │    ├── OutOfMemoryError (MemoryError)   device memory is exhausted
     │    └── DeviceLostError             a kernel's fault ended the device's context
     ├── SharingError                     an array of another process cannot be had, or is gone
     ├── ServiceError                     a service is not running, cannot run, or died
     │    ├── CallTimeoutError (TimeoutError)   no reply in time, or no room in the lane
     │    └── CallError                   the function's ``status`` says so
     │         ├── DeviceAssertionError (AssertionError)   its gd_assert failed
     │         └── RefusedArgumentError (ArgumentError)    its gd_require failed
     ├── BridgeError (OSError)            mapping failed (``errno`` is the system's)
     │    ├── BridgeUnavailableError      the bridge asked for cannot work here
     │    ├── NotMappableError            this memory cannot be mapped by this bridge
     │    └── ApertureError               the GPU's PCI aperture (BAR1) is exhausted
     └── KernelError
          ├── CompileError                the source does not compile (``log`` holds why)
          ├── KernelNotFoundError (LookupError)  the source has no such kernel
          └── LaunchError                 the launch was refused, or the kernel failed

After an error nothing is half done: a call that creates something and raises has created
nothing, and the next call works.
"""

from __future__ import annotations


class Error(Exception):
    """Base of every gpudirect exception."""


class ArgumentError(Error, ValueError):
    """A size, offset, shape or option is wrong."""


class DTypeError(ArgumentError, TypeError):
    """A dtype, or the type of an argument, cannot be used here."""


class RangeError(ArgumentError, IndexError):
    """The bytes asked for are outside the array."""


class ExportError(Error, BufferError):
    """The memory cannot be lent to another library in the way that was asked for."""


class ClosedError(Error):
    """The object was closed by its user."""


class RevokedError(Error):
    """The driver took the pinned pages back (their owner freed the memory or died)."""


class ForkError(Error):
    """The object belongs to the parent process; device mappings are not inherited."""


class FrameworkError(Error, ImportError):
    """Another library (PyTorch, CuPy, ...) is missing, too old for this, or set up against it."""


class DeviceError(Error):
    """A device call failed. ``code`` is the driver's result number, or None."""

    code: int | None = None

    def __init__(self, message: str = "", code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class DeviceNotFoundError(DeviceError):
    """There is no such device."""


class OutOfMemoryError(DeviceError, MemoryError):
    """Device memory is exhausted."""


class DeviceLostError(DeviceError):
    """A kernel's fault ended the device's context; make a new process to go on."""


class BridgeError(Error, OSError):
    """Mapping device memory failed. ``errno`` is the system's number, or None."""

    def __init__(self, message: str = "", errno: int | None = None) -> None:
        # OSError's two-argument form would print "[Errno n] ..." before our sentence
        super().__init__(message)
        self.errno = errno


class BridgeUnavailableError(BridgeError):
    """The bridge asked for cannot work on this machine."""


class NotMappableError(BridgeError):
    """This memory cannot be mapped by this bridge."""


class ApertureError(BridgeError):
    """The GPU's PCI aperture (BAR1), or the budget set for it, is exhausted."""


class SharingError(Error):
    """An array of another process cannot be attached, or its owner closed it or ended."""


class ServiceError(Error):
    """A service is not running, cannot run here, or has died."""


class CallTimeoutError(ServiceError, TimeoutError):
    """A call was not answered in time, or found no room in its lane."""


class CallError(ServiceError):
    """A function of a service says by its status that it failed.

    ``function`` is its name, ``status`` the number, ``value`` what came with it: a line of the
    source.
    """

    def __init__(self, message: str = "", function: str = "", status: int = 0, value: int = 0) -> None:
        super().__init__(message)
        self.function = function
        self.status = status
        self.value = value


class DeviceAssertionError(CallError, AssertionError):
    """An assertion failed on the device. ``value`` is its line."""


class RefusedArgumentError(CallError, ArgumentError):
    """The function refused an argument. ``value`` is the line of the condition."""


class KernelError(Error):
    """Base of what can go wrong with kernels."""


class CompileError(KernelError):
    """The kernel source does not compile. ``log`` is the compiler's own."""

    log: str = ""

    def __init__(self, message: str = "", log: str = "") -> None:
        super().__init__(message)
        self.log = log


class KernelNotFoundError(KernelError, LookupError):
    """The compiled source holds no kernel of that name."""


class LaunchError(KernelError):
    """A launch was refused before it started, or the kernel failed while it ran."""
