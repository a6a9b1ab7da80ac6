"""A service's code goes back when the service is gone. Only a GPU shows it: code takes device memory there.

Run by ``tests/gpu/run``.
"""

from __future__ import annotations

import gc

import pytest

import gpudirect as gd
from gpudirect._keeper import patient

BALLAST = 16 << 20  # bytes of device memory that the code brings along
SERVICES = 12


def make(n: int) -> gd.Service:
    source = f"""
        __device__ char ballast[{BALLAST + n}];
        __device__ int look(int i) {{ return ballast[i] + {n}; }}
        """
    return gd.Service(source, "look", lifetime=60)


@pytest.mark.gpu
def test_code_goes_back_with_its_service() -> None:
    device = gd.device()
    if device.emulated:
        pytest.skip("the emulated device keeps code in files")
    with make(1000) as other:  # a service that goes on meanwhile
        before = device.memory()[0]
        for n in range(SERVICES):
            with make(n) as svc:
                assert svc.look(5) == n
            del svc
            gc.collect()
            patient.settle()
            assert other.look(3) == 1000
        lost = before - device.memory()[0]
        assert lost < 3 * BALLAST, f"{lost} bytes did not come back after {SERVICES} services"
