# cython: language_level=3, embedsignature=True, boundscheck=False, wraparound=False, auto_pickle=False, autotestdict=False
"""UCP as hetcomm uses it: a worker, its peers, and tagged messages between them.

Theory of operation. UCX completes most small messages inside the call that posts them; for those no object is
made. Anything else is a `Request`, which its worker keeps (with whatever owns the memory) until UCX is done
with it: a receive that timed out may still be written to by the hardware, so it is never freed early.
All waiting goes through `Worker._turn`: progress, spin, yield, sleep on the worker's event descriptor, and in between
look at the clock and at Python's signals. The GIL is not held there.

Failures. A peer process on another machine, or in another process namespace, gets an endpoint with UCX's failure
handling. One on this machine is watched by a pidfd instead: with its failure handling UCX gives up CMA and CUDA IPC, and it does not
notice zombies. What a dead peer has already sent is still received; everything else that names it fails.

One thread at a time may use a worker. A second one gets a `TransportError` and changes nothing.
"""

import os

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint64_t
from libc.stdio cimport FILE, fclose
from libc.stdlib cimport free, realloc
from libc.string cimport memset
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlerror, dlopen

from hetcomm._ext.ucp_api cimport *

from hetcomm.errors import CollectiveTimeoutError, PeerFailureError, TransportError, UsageError

__all__ = ["Peer", "Registration", "Request", "Worker", "resolve"]


cdef extern from "ucp_wait.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* watched, unsigned long count, int milliseconds)
    short POLLIN
    enum:
        GO_ON "HETCOMM_GO_ON"
        LATE "HETCOMM_LATE"
        PATROL "HETCOMM_PATROL"
        INTERRUPTED "HETCOMM_INTERRUPTED"
    ctypedef struct Waiter "hetcomm_waiter":
        double deadline
    double now "hetcomm_now" ()
    Waiter wait_for "hetcomm_wait_for" (double seconds)
    int take_turn "hetcomm_turn" (ucp_worker_h worker, Waiter* waiter, pollfd* watched, unsigned count)

cdef extern from "<unistd.h>" nogil:
    int close_fd "close" (int fd)

cdef extern from "<stdio.h>" nogil:
    FILE* open_memstream(char** text, size_t* length)

cdef enum:
    GRACE_TURNS = 2000         # turns given to cancelled requests to come back

cdef bytes MAGIC = b"HCU1"
cdef Py_ssize_t HEADER = 32    # magic, boot id, process namespace, process id

cdef struct Link:
    ucp_ep_h ep
    ucs_status_t failed
    unsigned int* failures


cdef void _on_peer_failure(void* argument, ucp_ep_h ep, ucs_status_t status) noexcept nogil:
    cdef Link* link = <Link*>argument
    link.failed = status
    link.failures[0] += 1


cdef str _text(ucs_status_t status):
    return ucs_status_string(status).decode()


cdef bytes _process_mark():
    """The start of an address: by it a peer sees whether this process is on its machine, and which one it is."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            machine = bytes.fromhex(file.read().strip().replace("-", ""))
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        machine, namespace = os.urandom(16), 0  # like no other's: every peer counts as remote
    return MAGIC + machine + namespace.to_bytes(8, "little") + os.getpid().to_bytes(4, "little")


cdef tuple _version():
    cdef unsigned major, minor, release
    ucp_get_version(&major, &minor, &release)
    return major, minor, release


cdef object _resolved = None


def resolve(str path):
    """Use the libucp at `path` for all workers of this process; returns its version as three numbers.

    Raises:
        TransportError: It cannot be opened, lacks a function (the message says since which UCX there is one), or
            another library was resolved before.
    """
    global _resolved
    if _resolved is not None and _resolved != path:
        raise TransportError(
            f"this process already uses {_resolved}; {path} cannot be used beside it",
            remedy="Two UCX libraries in one process crash; start a new process to use another.",
        )
    cdef bytes name = path.encode()
    cdef void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)
    if library == NULL:
        raise TransportError(f"{path} cannot be loaded: {dlerror().decode()}")
    cdef const char* since = NULL
    cdef const char* missing = hetcomm_ucp_resolve(library, &since)
    if missing != NULL:
        found = ".".join(map(str, _version())) if missing != b"ucp_get_version" else "of unknown version"
        raise TransportError(
            f"UCX {found} at {path} lacks the function {missing.decode()}",
            remedy=f"hetcomm needs UCX {since.decode()} or later: install libucx-cu12, or point HETCOMM_UCX_HOME to one.",
        )
    _resolved = path
    return _version()


@cython.final
cdef class Peer:
    """One process that messages go to: its number, its endpoint, and whether it has failed."""

    cdef Link link
    cdef readonly int number
    cdef bytes address
    cdef int pidfd
    cdef bint sent

    def __cinit__(self):
        self.pidfd = -1

    def __dealloc__(self):
        if self.pidfd >= 0:
            close_fd(self.pidfd)


@cython.final
cdef class Registration:
    """A range of memory that UCX has registered."""

    cdef ucp_mem_h handle
    cdef readonly size_t address
    cdef readonly size_t nbytes
    cdef Py_ssize_t uses
    cdef bint doomed


@cython.final
@cython.freelist(64)
cdef class Request:
    """One message on its way; made by `Worker.send` and `Worker.recv` only."""

    cdef Worker worker
    cdef Peer peer
    cdef Registration memory
    cdef object keep
    cdef void* handle          # NULL once UCX is done with it
    cdef ucs_status_t status   # in progress, or what its owner is told
    cdef bint is_recv
    cdef size_t posted
    cdef size_t moved
    cdef ucp_tag_t tag

    def __init__(self):
        raise TypeError("a Request is made by Worker.send or Worker.recv")

    @property
    def nbytes(self):
        """Bytes that arrived, or were sent; 0 while under way."""
        return self.moved

    def test(self):
        """Whether it has completed; never blocks, never progresses the worker."""
        self._look()
        if self.status == UCS_INPROGRESS:
            return False
        if self.status != UCS_OK:
            self._raise()
        return True

    def cancel(self):
        """Ask for it to be cancelled; `test` then raises or returns True once it is over."""
        self._look()
        if self.status == UCS_INPROGRESS and self.worker._worker != NULL:
            ucp_request_cancel(self.worker._worker, self.handle)

    cdef int _look(self) except -1:
        """Bring `status` up to date with UCX and with the peer's health."""
        cdef ucs_status_t status
        cdef ucp_tag_recv_info_t info
        if self.handle != NULL:
            if self.worker._worker == NULL:
                self.handle = NULL
                self.status = UCS_ERR_CANCELED
                return 0
            if self.is_recv:
                status = ucp_tag_recv_request_test(self.handle, &info)
                self.moved = info.length if status == UCS_OK else 0
            else:
                status = ucp_request_check_status(self.handle)
                self.moved = self.posted if status == UCS_OK else 0
            if status != UCS_INPROGRESS:
                self._settle(status)
            elif self.peer.link.failed != UCS_OK and self.status == UCS_INPROGRESS:
                ucp_request_cancel(self.worker._worker, self.handle)
                self.status = self.peer.link.failed
        return 0

    cdef int _settle(self, ucs_status_t status) except -1:
        """UCX is done with the request: give it and its memory back."""
        ucp_request_free(self.handle)
        self.handle = NULL
        if self.status == UCS_INPROGRESS:
            self.status = status
        self.worker._inflight.discard(self)
        self.keep = None
        if self.memory is not None:
            self.memory.uses -= 1
            self.worker._unmap_if_unused(self.memory)
            self.memory = None
        return 0

    cdef int _raise(self) except -1:
        raise self.worker._error(self.peer, self.status, self.is_recv, self.posted, self.tag)


cdef class Worker:
    """A UCP worker with a context of its own, or one adopted from UCXX or ucx-py.

    Args:
        options: UCX settings by name without 'UCX_'; one this UCX does not know is listed in `unknown_options`.
        handle: The address of a running `ucp_worker_h` to share; it is neither configured nor destroyed, and its owner may
            drive progress as well, though not at the same time from another thread. Memory cannot be registered with it.

    Raises:
        TransportError: No library was resolved, or UCX cannot start; the message carries UCX's reason.
    """

    cdef ucp_context_h _context
    cdef ucp_worker_h _worker
    cdef bint _owned
    cdef bint _busy
    cdef pollfd* _watched
    cdef unsigned int _watching
    cdef unsigned int _calls
    cdef unsigned int _failures
    cdef uint64_t _memory_types
    cdef object __weakref__
    cdef dict _peers
    cdef set _inflight
    cdef list _registered
    cdef Request _done
    cdef object _interruption
    cdef bytes _address
    cdef readonly tuple unknown_options
    cdef Py_ssize_t _registrations, _hits, _misses
    cdef Py_ssize_t _sweep_at

    def __init__(self, dict options=None, size_t handle=0):
        if _resolved is None:
            raise TransportError("no UCX library has been resolved", remedy="Call resolve() first.")
        if self._worker != NULL:
            raise TransportError("this worker is already open")
        self._peers = {}
        self._inflight = set()
        self._registered = []
        self._sweep_at = 1024
        self._memory_types = 1 << UCS_MEMORY_TYPE_HOST
        self.unknown_options = ()
        self._done = Request.__new__(Request)
        self._done.worker = self
        self._done.status = UCS_OK
        if handle:
            self._worker = <ucp_worker_h>handle
        else:
            self._open(options or {})
        cdef int event_fd = -1
        if ucp_worker_get_efd(self._worker, &event_fd) != UCS_OK:
            event_fd = -1
        self._watch(event_fd)
        self._address = self._read_address()

    cdef int _open(self, dict options) except -1:
        cdef ucp_config_t* config
        cdef ucp_params_t params
        cdef ucp_worker_params_t worker_params
        cdef ucp_context_attr_t attributes
        cdef ucs_status_t status
        major, minor, _ = _version()
        self._check(ucp_config_read(NULL, NULL, &config), "ucp_config_read")
        unknown = []
        for name, value in options.items():
            if ucp_config_modify(config, name.encode(), value.encode()) != UCS_OK:
                unknown.append(name)
        self.unknown_options = tuple(unknown)
        memset(&params, 0, sizeof(params))
        params.field_mask = UCP_PARAM_FIELD_FEATURES
        params.features = UCP_FEATURE_TAG | UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP
        # The library's own version, not the headers': ucp_init() would pass the latter.
        status = ucp_init_version(major, minor, &params, config, &self._context)
        ucp_config_release(config)
        self._check(status, "ucp_init_version")
        memset(&attributes, 0, sizeof(attributes))
        attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES
        self._check(ucp_context_query(self._context, &attributes), "ucp_context_query")
        self._memory_types = attributes.memory_types
        memset(&worker_params, 0, sizeof(worker_params))
        worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_FLAGS
        worker_params.flags = UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK  # sends to a dead peer never end
        worker_params.thread_mode = UCS_THREAD_MODE_SERIALIZED
        status = ucp_worker_create(self._context, &worker_params, &self._worker)
        if status != UCS_OK:
            self._worker = NULL
            ucp_cleanup(self._context)
            self._context = NULL
        self._check(status, "ucp_worker_create")
        self._owned = True
        return 0

    cdef int _check(self, ucs_status_t status, str function) except -1:
        if status != UCS_OK:
            raise TransportError(
                f"{function} of {_resolved} failed: {_text(status)}",
                remedy="Run with UCX_LOG_LEVEL=info to see what UCX tried.",
            )
        return 0

    cdef bytes _read_address(self):
        cdef ucp_address_t* address
        cdef size_t length
        self._check(ucp_worker_get_address(self._worker, &address, &length), "ucp_worker_get_address")
        try:
            return _process_mark() + (<char*>address)[:length]
        finally:
            ucp_worker_release_address(self._worker, address)

    # ---- peers

    @property
    def address(self):
        """What another process needs to reach this worker."""
        return self._address

    @property
    def closed(self):
        """Whether `close` was called."""
        return self._worker == NULL

    @property
    def handle(self):
        """The address of the `ucp_worker_h`, as other bindings of UCX take it; 0 once closed."""
        return <size_t>self._worker

    def connect(self, int peer, bytes address):
        """Make `peer` reachable under its number; its own number is allowed and loops back.

        Raises:
            UsageError: `address` is not one of a hetcomm UCX transport, or `peer` stands for another address already.
            TransportError: UCX found no way to reach it; the message names the peer.
        """
        self._enter()
        self._busy = False
        if not address.startswith(MAGIC) or len(address) <= HEADER:
            raise UsageError(f"the address given for peer {peer} is not a UCX worker's", peer=peer)
        known = self._peers.get(peer)
        if known is not None and (<Peer>known).address == address:
            return
        if known is not None:
            raise UsageError(f"peer {peer} is connected already", peer=peer, remedy="Number the peers differently.")
        cdef Peer target = Peer.__new__(Peer)
        cdef ucp_ep_params_t params
        cdef const char* raw = address
        target.number = peer
        target.address = address
        target.link.failures = &self._failures
        memset(&params, 0, sizeof(params))
        params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS
        params.address = <const ucp_address_t*>(raw + HEADER)
        params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLER
        params.err_handler.cb = _on_peer_failure
        params.err_handler.arg = &target.link
        if address[:HEADER - 4] != self._address[:HEADER - 4]:
            params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE
            params.err_mode = UCP_ERR_HANDLING_MODE_PEER
        elif address[:HEADER] != self._address[:HEADER]:
            self._watch_process(target, int.from_bytes(address[HEADER - 4:HEADER], "little"))
        cdef ucs_status_t status = ucp_ep_create(self._worker, &params, &target.link.ep)
        if status != UCS_OK:
            raise TransportError(
                f"UCX cannot reach peer {peer}: {_text(status)}",
                peer=peer,
                remedy="Look at UCX_TLS and UCX_NET_DEVICES on both sides; 'hetcomm doctor' shows the transports.",
            )
        self._peers[peer] = target

    cdef int _watch_process(self, Peer peer, int pid) except -1:
        try:
            peer.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise PeerFailureError(
                f"peer {peer.number} (process {pid}) has ended", peer=peer.number,
                remedy="Look at that peer's output for why it ended.",
            ) from None
        except OSError:
            return 0  # no pidfd in this kernel or sandbox: its failure shows as a timeout
        return self._watch(peer.pidfd)

    def supports_memory_type(self, str name):
        """Whether UCX moves memory of that type ('host', 'cuda', 'rocm') here."""
        cdef int kind = {"host": UCS_MEMORY_TYPE_HOST, "cuda": UCS_MEMORY_TYPE_CUDA, "rocm": UCS_MEMORY_TYPE_ROCM}[name]
        return bool(self._memory_types >> kind & 1)

    def lane_names(self):
        """For each peer, the transports UCX has chosen, as 'transport/device' strings."""
        cdef ucp_ep_attr_t attributes
        cdef ucp_transport_entry_t entries[64]
        cdef Peer target
        cdef unsigned int index
        self._enter()
        self._busy = False
        found = {}
        for number, target in self._peers.items():
            if target.link.failed != UCS_OK:
                found[number] = [f"failed: {_text(target.link.failed)}"]
                continue
            memset(&attributes, 0, sizeof(attributes))
            attributes.field_mask = UCP_EP_ATTR_FIELD_TRANSPORTS
            attributes.transports.entries = entries
            attributes.transports.num_entries = 64
            attributes.transports.entry_size = sizeof(ucp_transport_entry_t)
            if not has_ep_query or ucp_ep_query(target.link.ep, &attributes) != UCS_OK:
                found[number] = ["unknown: this UCX has no ucp_ep_query of transports (since 1.14)"]
                continue
            names = []
            for index in range(attributes.transports.num_entries):
                name = f"{entries[index].transport_name.decode()}/{entries[index].device_name.decode()}"
                if name not in names:
                    names.append(name)
            found[number] = names
        return found

    def describe(self, int peer):
        """UCX's own text about the endpoint of `peer`: lanes, protocols and thresholds."""
        cdef Peer target = self._peer(peer)
        cdef char* text = NULL
        cdef size_t length = 0
        cdef FILE* stream
        self._enter()
        self._busy = False
        stream = open_memstream(&text, &length)
        if stream == NULL:
            raise MemoryError()
        ucp_ep_print_info(target.link.ep, stream)
        fclose(stream)
        try:
            return text[:length].decode(errors="replace")
        finally:
            free(text)

    def fileno(self):
        """The descriptor that becomes readable when there is something to progress; -1 if this UCX has none."""
        return self._watched[0].fd if self._watching else -1

    cdef inline Peer _peer(self, int number):
        found = self._peers.get(number)
        if found is None:
            if self._worker == NULL:
                self._enter()
            raise UsageError(f"peer {number} is not connected", peer=number, remedy="Call connect() first.")
        return <Peer>found

    cdef inline int _enter(self) except -1:
        """Every call that touches UCX starts here and resets `_busy` when it leaves."""
        if self._worker == NULL:
            raise TransportError("this UCX transport is closed", remedy="Open a new one.")
        if self._busy:
            raise TransportError(
                "a second thread, or a signal handler, used a UCX transport in the middle of a call",
                remedy="Let one thread at a time use it.",
            )
        self._busy = True
        return 0

    # ---- messages

    def send(self, size_t address, size_t nbytes, int peer, ucp_tag_t tag, object keep=None):
        """Start sending `nbytes` bytes at `address`; they must stay unchanged until the request is complete.

        `keep` is whatever owns the memory; it stays alive until UCX is done with it.
        """
        return self._post(address, nbytes, self._peer(peer), tag, False, keep)

    def recv(self, size_t address, size_t nbytes, int peer, ucp_tag_t tag, object keep=None):
        """Start receiving at most `nbytes` bytes to `address` from whoever sends with `tag`.

        `peer` is whose failure fails this request. `keep` is as for `send`.
        """
        return self._post(address, nbytes, self._peer(peer), tag, True, keep)

    cdef Request _post(self, size_t address, size_t nbytes, Peer peer, ucp_tag_t tag, bint is_recv, object keep):
        cdef ucp_request_param_t param
        cdef ucp_tag_recv_info_t info
        cdef Registration memory = None
        cdef void* handle
        cdef Request request
        self._enter()
        param.op_attr_mask = 0
        if self._registered:
            memory = self._lookup(address, nbytes)
            if memory is not None:
                param.op_attr_mask = UCP_OP_ATTR_FIELD_MEMH
                param.memh = memory.handle
        with nogil:
            handle = self._start(peer, <void*>address, nbytes, tag, is_recv, &param, &info)
        self._busy = False
        if handle == NULL and not is_recv:
            return self._done
        request = self._request(peer, handle, nbytes, tag, is_recv, keep)
        if handle == NULL:
            request.moved = info.length
        elif request.handle != NULL and memory is not None:
            memory.uses += 1
            request.memory = memory
        return request

    cdef inline void* _start(
        self, Peer peer, void* address, size_t nbytes, ucp_tag_t tag, bint is_recv,
        ucp_request_param_t* param, ucp_tag_recv_info_t* info,
    ) noexcept nogil:
        if is_recv:
            param.op_attr_mask |= UCP_OP_ATTR_FIELD_RECV_INFO
            param.tag_info = info
            return ucp_tag_recv_nbx(self._worker, address, nbytes, tag, <ucp_tag_t>-1, param)
        if peer.link.failed != UCS_OK:  # what goes to a dead process on this machine would wait forever
            return <void*><ssize_t>peer.link.failed
        peer.sent = True
        return ucp_tag_send_nbx(peer.link.ep, address, nbytes, tag, param)

    cdef Request _request(self, Peer peer, void* handle, size_t nbytes, ucp_tag_t tag, bint is_recv, object keep):
        """The object for what `_start` returned; kept by the worker as long as UCX needs it."""
        cdef Request request = Request.__new__(Request)
        request.worker = self
        request.peer = peer
        request.posted = nbytes
        request.tag = tag
        request.is_recv = is_recv
        if handle == NULL:
            request.status = UCS_OK
        elif UCS_PTR_IS_ERR(handle):
            request.status = UCS_PTR_STATUS(handle)
        else:
            request.handle = handle
            request.status = UCS_INPROGRESS
            request.keep = keep
            self._inflight.add(request)
            if len(self._inflight) > self._sweep_at:
                self._sweep()
                self._sweep_at = 2 * len(self._inflight) + 1024
        return request

    cdef int _sweep(self) except -1:
        """Settle the requests that have completed without anyone asking."""
        for request in list(self._inflight):
            (<Request>request)._look()
        return 0

    def send_buffer(self, object buffer, int peer, ucp_tag_t tag, double timeout):
        """Send any C-contiguous buffer in host memory and return when it may be changed again.

        Raises:
            UsageError: `buffer` has no buffer protocol or is not C-contiguous.
            CollectiveTimeoutError: `timeout` seconds passed; the message may or may not arrive.
            PeerFailureError: The peer is gone.
        """
        cdef Peer target = self._peer(peer)
        cdef Py_buffer view
        _export(buffer, &view, PyBUF_C_CONTIGUOUS, "send")
        try:
            self._blocking(buffer, view.buf, view.len, target, tag, False, timeout)
        finally:
            PyBuffer_Release(&view)

    def recv_buffer(self, object buffer, int peer, ucp_tag_t tag, double timeout):
        """Receive into any writable C-contiguous buffer in host memory; returns the bytes that arrived.

        Raises:
            UsageError: `buffer` has no buffer protocol, is not C-contiguous, or is read-only.
            CollectiveTimeoutError: `timeout` seconds passed; the receive has been cancelled.
            PeerFailureError: The peer is gone.
            TransportError: The message was longer than the buffer; its contents are undefined.
        """
        cdef Peer target = self._peer(peer)
        cdef Py_buffer view
        _export(buffer, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE, "recv")
        try:
            return self._blocking(buffer, view.buf, view.len, target, tag, True, timeout)
        finally:
            PyBuffer_Release(&view)

    cdef Py_ssize_t _blocking(
        self, object owner, void* address, size_t nbytes, Peer peer, ucp_tag_t tag, bint is_recv, double timeout,
    ) except -1:
        cdef ucp_request_param_t param
        cdef ucp_tag_recv_info_t info
        cdef void* handle
        cdef ucs_status_t status = UCS_OK
        cdef Waiter waiter
        cdef int turn = GO_ON
        cdef Request request
        self._enter()
        param.op_attr_mask = UCP_OP_ATTR_FIELD_MEMORY_TYPE
        param.memory_type = UCS_MEMORY_TYPE_HOST
        with nogil:
            handle = self._start(peer, address, nbytes, tag, is_recv, &param, &info)
            if handle != NULL and not UCS_PTR_IS_ERR(handle):
                waiter = wait_for(timeout)
                while True:
                    if is_recv:
                        status = ucp_tag_recv_request_test(handle, &info)
                    else:
                        status = ucp_request_check_status(handle)
                    if status != UCS_INPROGRESS or peer.link.failed != UCS_OK:
                        break
                    turn = self._turn(&waiter)
                    if turn != GO_ON:
                        break
                if status == UCS_OK:
                    ucp_request_free(handle)
            elif handle != NULL:
                status = UCS_PTR_STATUS(handle)
        self._busy = False
        if status == UCS_OK:
            return info.length if is_recv else nbytes
        request = self._request(peer, handle, nbytes, tag, is_recv, None)
        if request.handle != NULL and status == UCS_INPROGRESS:
            request.keep = memoryview(owner)
        self._conclude([request], turn, timeout)
        return request.moved

    def wait(self, object requests, double timeout):
        """Progress until all `requests` are complete: spin, then yield the processor, then sleep.

        Raises:
            CollectiveTimeoutError: `timeout` seconds passed; what was unfinished has been cancelled.
            PeerFailureError: A peer is gone; the other requests have been cancelled.
            TransportError: A request failed or was cancelled; the other requests have been cancelled.
        """
        cdef Waiter waiter
        cdef Request request
        cdef int turn = GO_ON
        cdef unsigned int failures
        cdef bint started = False
        self._enter()
        failures = self._failures
        try:
            for item in requests:
                request = <Request?>item
                request._look()
                if request.status == UCS_INPROGRESS:
                    if not started:
                        waiter = wait_for(timeout)
                        started = True
                    with nogil:
                        while ucp_request_check_status(request.handle) == UCS_INPROGRESS:
                            turn = self._turn(&waiter)
                            if turn != GO_ON or self._failures != failures:
                                break
                    request._look()
                if request.status != UCS_OK:
                    break
            else:
                return
        finally:
            self._busy = False
        if turn == GO_ON and self._failures != failures and self._continue(requests):
            self.wait(requests, waiter.deadline - now())
            return
        self._conclude(list(requests), turn, timeout)

    cdef bint _continue(self, object requests) except -1:
        """Whether none of `requests` has failed: a peer died, but not one of theirs."""
        cdef Request request
        for item in requests:
            request = <Request>item
            request._look()
            if request.status != UCS_OK and request.status != UCS_INPROGRESS:
                return False
        return True

    cdef int _conclude(self, list requests, int turn, double timeout) except -1:
        """Cancel what is unfinished, give it a moment to come back, and raise what stopped the wait."""
        cdef Request request, culprit = None
        cdef Py_ssize_t unfinished
        cdef int turns
        for request in requests:
            request._look()
            if culprit is None and request.status != UCS_OK and request.status != UCS_INPROGRESS:
                culprit = request
        late = [request for request in requests if (<Request>request).status == UCS_INPROGRESS]
        for request in late:
            request.cancel()
        for turns in range(GRACE_TURNS):
            unfinished = 0
            for request in requests:
                request._look()
                unfinished += request.handle != NULL
            if unfinished == 0:
                break
            with nogil:
                ucp_worker_progress(self._worker)
        if turn == INTERRUPTED:
            self._raise_interruption()
        if culprit is not None:
            culprit._raise()
        if late:
            raise self._timeout(late, timeout)
        return 0

    cdef object _timeout(self, list late, double timeout):
        cdef Request first = late[0]
        what = "message from" if first.is_recv else "send to"
        more = f" and {len(late) - 1} more" if len(late) > 1 else ""
        return CollectiveTimeoutError(
            f"waited {timeout:g} s in vain for the {what} peer {first.peer.number} "
            f"(tag {first.tag:#x}, {first.posted} bytes){more}",
            peer=first.peer.number,
            remedy="See whether that peer is alive and makes the same calls; HETCOMM_TIMEOUT sets the limit.",
        )

    cdef object _error(self, Peer peer, ucs_status_t status, bint is_recv, size_t posted, ucp_tag_t tag):
        what = "receive from" if is_recv else "send to"
        if self._worker == NULL:
            return TransportError(f"the {what} peer {peer.number} ended because the transport was closed",
                                  peer=peer.number)
        if peer.link.failed != UCS_OK or status == UCS_ERR_CONNECTION_RESET:
            return PeerFailureError(
                f"peer {peer.number} is gone: {_text(peer.link.failed or status)}",
                peer=peer.number,
                remedy="Close this communicator; look at that peer's output for why it ended.",
            )
        if status == UCS_ERR_MESSAGE_TRUNCATED:
            return TransportError(
                f"the message from peer {peer.number} (tag {tag:#x}) is longer than the {posted} bytes given for it",
                peer=peer.number,
                remedy="Receive into an array at least as long as the sender's.",
            )
        if status == UCS_ERR_CANCELED:
            return TransportError(f"the {what} peer {peer.number} (tag {tag:#x}) was cancelled", peer=peer.number)
        return TransportError(
            f"the {what} peer {peer.number} (tag {tag:#x}, {posted} bytes) failed: {_text(status)}", peer=peer.number)

    # ---- time

    cdef int _turn(self, Waiter* waiter) noexcept nogil:
        """One turn of waiting; now and then a look at signals and at the processes of local peers."""
        cdef int turn = take_turn(self._worker, waiter, self._watched, self._watching)
        if turn != PATROL:
            return turn
        with gil:
            try:
                PyErr_CheckSignals()
                self._patrol()
            except BaseException as error:  # a signal handler's, on its way to the caller
                self._interruption = error
                return INTERRUPTED
        return GO_ON

    cdef int _patrol(self) except -1:
        """Mark the local peers whose processes have ended, once all they sent has been taken in."""
        cdef Peer peer
        cdef int turns
        if self._watching < 2 or poll(self._watched + 1, self._watching - 1, 0) == 0:
            return 0
        for turns in range(GRACE_TURNS):
            if ucp_worker_progress(self._worker) == 0:
                break
        gone = {self._watched[index].fd for index in range(1, self._watching) if self._watched[index].revents & POLLIN}
        for item in self._peers.values():
            peer = <Peer>item
            if peer.pidfd in gone:
                self._unwatch(peer.pidfd)
                _on_peer_failure(&peer.link, peer.link.ep, UCS_ERR_CONNECTION_RESET)
        return 0

    cdef int _watch(self, int fd) except -1:
        cdef pollfd* grown = <pollfd*>realloc(self._watched, (self._watching + 1) * sizeof(pollfd))
        if grown == NULL:
            raise MemoryError()
        self._watched = grown
        self._watched[self._watching].fd = fd
        self._watched[self._watching].events = POLLIN
        self._watched[self._watching].revents = 0
        self._watching += 1
        return 0

    cdef int _unwatch(self, int fd) noexcept:
        cdef unsigned int index
        for index in range(1, self._watching):
            if self._watched[index].fd == fd:
                self._watching -= 1
                self._watched[index] = self._watched[self._watching]
                break
        return 0

    cdef int _raise_interruption(self) except -1:
        error = self._interruption
        self._interruption = None
        raise error

    def progress(self):
        """Move messages along without waiting; whether anything happened."""
        cdef unsigned int moved
        self._enter()
        with nogil:
            moved = ucp_worker_progress(self._worker)
        self._calls += 1
        if not moved and self._calls & 255 == 0:
            self._patrol()
        self._busy = False
        return moved != 0

    def flush(self, double timeout):
        """Wait until all that was sent has left this process for good; peers that have failed are passed over.

        Raises:
            CollectiveTimeoutError: `timeout` seconds passed; nothing has been cancelled.
        """
        cdef double deadline = now() + timeout
        cdef ucp_request_param_t param
        cdef Request request
        cdef Peer peer
        cdef void* handle
        self._enter()
        self._busy = False
        for item in [item for item in self._inflight if not (<Request>item).is_recv]:
            request = <Request>item
            self._drain(request.handle, request.peer, deadline)
            request._look()
        param.op_attr_mask = 0
        for item in list(self._peers.values()):
            peer = <Peer>item
            if not peer.sent or peer.link.failed != UCS_OK:
                continue
            self._enter()
            handle = ucp_ep_flush_nbx(peer.link.ep, &param)
            self._busy = False
            if handle == NULL or UCS_PTR_IS_ERR(handle):
                peer.sent = False
                continue
            try:
                self._drain(handle, peer, deadline)
            finally:
                ucp_request_free(handle)
            peer.sent = False

    cdef int _drain(self, void* handle, Peer peer, double deadline) except -1:
        cdef Waiter waiter = wait_for(deadline - now())
        cdef int turn = GO_ON
        if handle == NULL:
            return 0
        self._enter()
        with nogil:
            while ucp_request_check_status(handle) == UCS_INPROGRESS and peer.link.failed == UCS_OK:
                turn = self._turn(&waiter)
                if turn != GO_ON:
                    break
        self._busy = False
        if turn == INTERRUPTED:
            self._raise_interruption()
        if turn == LATE:
            raise CollectiveTimeoutError(
                f"what was sent to peer {peer.number} did not leave in time",
                peer=peer.number,
                remedy="See whether that peer is alive and receiving.",
            )
        return 0

    # ---- registered memory

    def register(self, size_t address, size_t nbytes):
        """Register host or device memory once, so that messages inside it need no registration of their own.

        The caller calls `deregister` before it frees the memory. A range inside one that is registered costs nothing.

        Raises:
            TransportError: UCX cannot register it, or the worker was adopted.
        """
        self._enter()
        self._busy = False
        if self._context == NULL:
            raise TransportError("memory cannot be registered with an adopted worker")
        if nbytes == 0 or self._lookup(address, nbytes) is not None:
            return
        cdef ucp_mem_map_params_t params
        memset(&params, 0, sizeof(params))
        params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH
        params.address = <void*>address
        params.length = nbytes
        cdef Registration memory = Registration.__new__(Registration)
        self._check(ucp_mem_map(self._context, &params, &memory.handle), "ucp_mem_map")
        memory.address = address
        memory.nbytes = nbytes
        self._registered.append(memory)
        self._registrations += 1

    def deregister(self, size_t address, size_t nbytes):
        """Forget every registration that touches the range; returns how many there were.

        One that a message under way uses is given back to UCX when that message completes.
        """
        cdef Registration memory
        hit = [memory for memory in self._registered
               if (<Registration>memory).address < address + nbytes
               and address < (<Registration>memory).address + (<Registration>memory).nbytes]
        for memory in hit:
            self._registered.remove(memory)
            memory.doomed = True
            self._unmap_if_unused(memory)
        return len(hit)

    def statistics(self):
        """Counts as a dict: registrations made and held, bytes held, lookups that hit and missed, messages under way."""
        return {
            "registrations": self._registrations,
            "registered": len(self._registered),
            "registered_nbytes": sum([(<Registration>memory).nbytes for memory in self._registered]),
            "hits": self._hits,
            "misses": self._misses,
            "inflight": len(self._inflight),
        }

    cdef Registration _lookup(self, size_t address, size_t nbytes):
        cdef Registration memory
        for item in self._registered:
            memory = <Registration>item
            if memory.address <= address and address + nbytes <= memory.address + memory.nbytes:
                self._hits += 1
                return memory
        self._misses += 1
        return None

    cdef int _unmap_if_unused(self, Registration memory) except -1:
        if memory.doomed and memory.uses == 0 and memory.handle != NULL and self._context != NULL:
            ucp_mem_unmap(self._context, memory.handle)
            memory.handle = NULL
        return 0

    # ---- the end

    def close(self, double timeout=1.0):
        """Cancel what is under way and release everything; calling it again does nothing.

        Messages already handed to UCX get `timeout` seconds to leave. A peer that is still talking to this worker sees a
        failure, so agree on the end before closing.
        """
        cdef Request request
        if self._worker == NULL:
            return
        if timeout > 0:
            try:
                self.flush(timeout)
            except CollectiveTimeoutError:
                pass  # closing must end; the peer learns of it as a failure
        self._enter()
        for item in list(self._inflight):
            ucp_request_cancel(self._worker, (<Request>item).handle)
        self._close_endpoints(0.2)
        for item in list(self._inflight):
            request = <Request>item
            request._look()
            if request.handle != NULL:
                request._settle(UCS_ERR_CANCELED)
        for memory in self._registered:
            (<Registration>memory).doomed = True
            self._unmap_if_unused(<Registration>memory)
        self._registered.clear()
        self._peers.clear()
        if self._owned:
            with nogil:
                ucp_worker_destroy(self._worker)
                ucp_cleanup(self._context)
        self._worker = NULL
        self._context = NULL
        self._watching = 0
        self._busy = False

    cdef int _close_endpoints(self, double timeout) except -1:
        """Close all endpoints, by force where UCX allows it, and wait at most `timeout` seconds for that."""
        cdef Peer peer
        cdef ucp_request_param_t param
        cdef void* handle
        cdef double deadline = now() + timeout
        for item in self._peers.values():
            peer = <Peer>item
            param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS
            param.flags = UCP_EP_CLOSE_FLAG_FORCE
            handle = ucp_ep_close_nbx(peer.link.ep, &param)
            if UCS_PTR_IS_ERR(handle):  # by force is for endpoints with failure handling
                param.flags = 0
                handle = ucp_ep_close_nbx(peer.link.ep, &param)
            if handle == NULL or UCS_PTR_IS_ERR(handle):
                continue
            with nogil:
                while ucp_request_check_status(handle) == UCS_INPROGRESS and now() < deadline:
                    ucp_worker_progress(self._worker)
            ucp_request_free(handle)
        return 0

    def __dealloc__(self):
        free(self._watched)

    def __del__(self):
        if self._inflight is not None:
            self._busy = False
            self.close(0)


cdef int _export(object buffer, Py_buffer* view, int flags, str call) except -1:
    """Fill `view`, or say which of the conditions `buffer` does not meet."""
    try:
        PyObject_GetBuffer(buffer, view, flags)
    except (BufferError, ValueError, TypeError) as error:
        reason = str(error)
    else:
        return 0
    name = type(buffer).__name__
    try:
        seen = memoryview(buffer)
    except (BufferError, ValueError, TypeError):
        raise UsageError(
            f"the array given to {call} ({name}) offers no buffer in host memory: {reason}",
            remedy="Pass a NumPy array or another object with the buffer protocol.",
        ) from None
    if not seen.c_contiguous:
        raise UsageError(
            f"the array given to {call} ({name} of shape {seen.shape}, strides {seen.strides}) is not C-contiguous",
            remedy="Pass numpy.ascontiguousarray(array), or a contiguous slice.",
        )
    raise UsageError(
        f"the array given to {call} ({name}) cannot be used: {reason}",
        remedy="Pass a writable array to receive into." if seen.readonly else None,
    )
