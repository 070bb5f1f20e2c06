# distutils: language = c++
# cython: language_level=3, binding=False, embedsignature=True
"""oneCCL's C++ API for host memory, as thin as it can be.

Links nothing: `libccl.so.1` must have been loaded with global symbols before this module is imported, which
`hetcomm.vendors.oneccl` does. Errors of the library arrive as `RuntimeError` with its text. Whatever may wait for
other ranks releases the GIL.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uintptr_t

cdef extern from *:
    """
    #include <memory>
    #include "oneapi/ccl.hpp"

    namespace hetcomm {

    using Kvs = std::shared_ptr<ccl::kvs>;

    static ccl::event *all_reduce(uintptr_t in, uintptr_t out, size_t count, int dtype, int op,
                                  const ccl::communicator &comm) {
        return new ccl::event(ccl::allreduce(reinterpret_cast<const void *>(in), reinterpret_cast<void *>(out), count,
                                             static_cast<ccl::datatype>(dtype), static_cast<ccl::reduction>(op), comm));
    }

    static ccl::event *reduce(uintptr_t in, uintptr_t out, size_t count, int dtype, int op, int root,
                              const ccl::communicator &comm) {
        return new ccl::event(ccl::reduce(reinterpret_cast<const void *>(in), reinterpret_cast<void *>(out), count,
                                          static_cast<ccl::datatype>(dtype), static_cast<ccl::reduction>(op), root,
                                          comm));
    }

    static ccl::event *reduce_scatter(uintptr_t in, uintptr_t out, size_t count, int dtype, int op,
                                      const ccl::communicator &comm) {
        return new ccl::event(ccl::reduce_scatter(reinterpret_cast<const void *>(in), reinterpret_cast<void *>(out),
                                                  count, static_cast<ccl::datatype>(dtype),
                                                  static_cast<ccl::reduction>(op), comm));
    }

    static ccl::event *all_gather(uintptr_t in, uintptr_t out, size_t count, int dtype, const ccl::communicator &comm) {
        return new ccl::event(ccl::allgather(reinterpret_cast<const void *>(in), reinterpret_cast<void *>(out), count,
                                             static_cast<ccl::datatype>(dtype), comm));
    }

    static ccl::event *broadcast(uintptr_t buffer, size_t count, int dtype, int root, const ccl::communicator &comm) {
        return new ccl::event(ccl::broadcast(reinterpret_cast<void *>(buffer), count,
                                             static_cast<ccl::datatype>(dtype), root, comm));
    }

    static ccl::communicator *create_communicator(int nranks, int rank, const Kvs &kvs) {
        return new ccl::communicator(ccl::create_communicator(nranks, rank, kvs));
    }

    static Kvs join_kvs(const char *address) {
        ccl::kvs::address_type where;
        std::copy(address, address + where.size(), where.begin());
        return ccl::create_kvs(where);
    }

    }  // namespace hetcomm
    """
    cdef cppclass Kvs "hetcomm::Kvs":
        void reset()

    cdef cppclass Address "ccl::kvs::address_type":
        const char* data()
        size_t size()

    cdef cppclass Communicator "ccl::communicator":
        pass

    cdef cppclass Event "ccl::event":
        bint test() except + nogil

    cdef cppclass Version "ccl::library_version":
        unsigned int major
        unsigned int minor
        unsigned int update

    int ADDRESS_SIZE "static_cast<int>(ccl::kvs::address_max_size)"
    Version get_library_version "ccl::get_library_version"() except +
    void ccl_init "ccl::init"() except + nogil
    Kvs create_main_kvs "ccl::create_main_kvs"() except + nogil
    Kvs join_kvs "hetcomm::join_kvs"(const char* address) except + nogil
    Address kvs_address "[](const hetcomm::Kvs &kvs) { return kvs->get_address(); }"(const Kvs& kvs) except +
    Communicator* create_communicator "hetcomm::create_communicator"(
        int nranks, int rank, const Kvs& kvs) except + nogil
    Event* all_reduce "hetcomm::all_reduce"(
        uintptr_t src, uintptr_t dst, size_t count, int dtype, int op, const Communicator& comm) except + nogil
    Event* reduce_to "hetcomm::reduce"(
        uintptr_t src, uintptr_t dst, size_t count, int dtype, int op, int root,
        const Communicator& comm) except + nogil
    Event* reduce_scatter "hetcomm::reduce_scatter"(
        uintptr_t src, uintptr_t dst, size_t count, int dtype, int op, const Communicator& comm) except + nogil
    Event* all_gather "hetcomm::all_gather"(
        uintptr_t src, uintptr_t dst, size_t count, int dtype, const Communicator& comm) except + nogil
    Event* broadcast "hetcomm::broadcast"(
        uintptr_t buffer, size_t count, int dtype, int root, const Communicator& comm) except + nogil


def library_version() -> str:
    """Version of the loaded library, such as '2021.16.2'."""
    cdef Version version = get_library_version()
    return f"{version.major}.{version.minor}.{version.update}"


def init() -> None:
    """Initialise the library from the environment; calling it again does nothing."""
    with nogil:
        ccl_init()


cdef class KeyValueStore:
    """Where the ranks of a new communicator meet: made by one of them, joined by the others at its address."""

    cdef Kvs kvs
    cdef bint is_open

    def __init__(self, bytes address=None) -> None:
        """Make a store, or join the one at `address`."""
        cdef const char* where
        if address is None:
            with nogil:
                self.kvs = create_main_kvs()
        else:
            if len(address) != ADDRESS_SIZE:
                raise ValueError(f"a key-value store's address has {ADDRESS_SIZE} bytes, not {len(address)}")
            where = address
            with nogil:
                self.kvs = join_kvs(where)
        self.is_open = True

    @property
    def address(self) -> bytes:
        """What the other ranks need to join."""
        cdef Address where = kvs_address(self.kvs)
        return where.data()[:where.size()]

    def close(self) -> None:
        """Let go of it; the communicators made through it must be closed first."""
        self.is_open = False
        self.kvs.reset()


cdef class CclEvent:
    """One collective under way."""

    cdef Event* event
    cdef bint complete

    def __dealloc__(self):
        # Destroying one that is not complete would release buffers the library still works on: it is left alone.
        if self.event != NULL and self.complete:
            del self.event

    def test(self) -> bool:
        """Progress the library and say whether it is complete; never blocks."""
        cdef bint complete
        if not self.complete:
            with nogil:
                complete = self.event.test()
            self.complete = complete
        return self.complete


cdef CclEvent _wrap(Event* event):
    cdef CclEvent self = CclEvent.__new__(CclEvent)
    self.event = event
    return self


cdef class CclCommunicator:
    """A communicator. Data types and reductions are oneCCL's own numbers, counts are elements.

    Only `close` destroys it: where the object is merely dropped, other ranks need not be there any more.
    """

    cdef Communicator* comm

    def __init__(self, int nranks, int rank, KeyValueStore store) -> None:
        """Collective over the ranks that share `store`."""
        if not store.is_open:
            raise ValueError("the key-value store is closed")
        with nogil:
            self.comm = create_communicator(nranks, rank, store.kvs)

    cdef const Communicator* _get(self) except NULL:
        if self.comm == NULL:
            raise ValueError("the oneCCL communicator is closed")
        return self.comm

    def all_reduce(self, uintptr_t src, uintptr_t dst, size_t count, int dtype, int op) -> CclEvent:
        cdef const Communicator* comm = self._get()
        cdef Event* event
        with nogil:
            event = all_reduce(src, dst, count, dtype, op, comm[0])
        return _wrap(event)

    def reduce(self, uintptr_t src, uintptr_t dst, size_t count, int dtype, int op, int root) -> CclEvent:
        cdef const Communicator* comm = self._get()
        cdef Event* event
        with nogil:
            event = reduce_to(src, dst, count, dtype, op, root, comm[0])
        return _wrap(event)

    def reduce_scatter(self, uintptr_t src, uintptr_t dst, size_t count, int dtype, int op) -> CclEvent:
        cdef const Communicator* comm = self._get()
        cdef Event* event
        with nogil:
            event = reduce_scatter(src, dst, count, dtype, op, comm[0])
        return _wrap(event)

    def all_gather(self, uintptr_t src, uintptr_t dst, size_t count, int dtype) -> CclEvent:
        cdef const Communicator* comm = self._get()
        cdef Event* event
        with nogil:
            event = all_gather(src, dst, count, dtype, comm[0])
        return _wrap(event)

    def broadcast(self, uintptr_t buffer, size_t count, int dtype, int root) -> CclEvent:
        cdef const Communicator* comm = self._get()
        cdef Event* event
        with nogil:
            event = broadcast(buffer, count, dtype, root, comm[0])
        return _wrap(event)

    def close(self) -> None:
        """Destroy it; collective, since it waits for the other ranks. Calling it again does nothing."""
        cdef Communicator* comm = self.comm
        self.comm = NULL
        if comm != NULL:
            with nogil:
                del comm

    def abandon(self) -> None:
        """Forget it without destroying it: for one whose ranks will not all finish."""
        self.comm = NULL
