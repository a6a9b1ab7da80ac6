"""One build of the C parts serves Python 3.11 and every later one."""

import gc
import sys
import sysconfig
import weakref

import pytest

import gpudirect as gd
from gpudirect._native import Lease, Yard, _dlpack, _lease, _mapped
from gpudirect.service._native import Call, Caller, Function, _calls

limited = pytest.mark.skipif(
    sys.version_info < (3, 11) or bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="this Python gets a build of its own",
)


@limited
@pytest.mark.parametrize("module", (_dlpack, _lease, _mapped, _calls), ids=lambda m: m.__name__)
def test_the_extensions_are_for_later_pythons_too(module):
    assert module.__file__.endswith(".abi3.so")


@pytest.mark.parametrize("kind", (_mapped.Mapped, Lease, Yard, Call, Caller, Function))
def test_types_cannot_be_changed_from_python(kind):
    with pytest.raises(TypeError):
        kind.planted = 1


def test_what_only_c_makes_cannot_be_made_from_python():
    for kind in (Call, gd.Future):
        with pytest.raises(TypeError):
            kind()


def test_a_subclass_of_a_collected_type_is_collected():
    """Objects hold their type, and the type's traverse tells of it: neither lives for ever."""

    class Service(Caller):
        pass

    service = Service()
    service.itself = service
    gone = weakref.ref(service), weakref.ref(Service)
    del service, Service
    gc.collect()
    assert [g() for g in gone] == [None, None]


def test_types_have_as_many_references_after_as_before():
    before = [sys.getrefcount(t) for t in (Lease, Yard)]
    for _ in range(100):
        lease = Lease(Yard())
        lease.end()
        del lease
    assert [sys.getrefcount(t) for t in (Lease, Yard)] == before
