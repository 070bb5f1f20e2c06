# cython: language_level=3, embedsignature=True, boundscheck=False, wraparound=False
# cython: auto_pickle=False, autotestdict=False
"""UCP as hetcomm uses it: a worker, its peers, and tagged messages between them.

Theory of operation. UCX completes most small messages inside the call that posts them; for those no object is
made. Anything else is a `Request`, which its worker keeps (with whatever owns the memory) until UCX is done
with it: a receive that timed out may still be written to by the hardware, so it is never freed early.
All waiting goes through `Engine.turn`: progress, spin, yield, sleep on the worker's event descriptor, and in between
look at the clock and at Python's signals. The GIL is not held there.

Failures. A peer process on another machine, or in another process namespace, gets an endpoint with UCX's failure
handling. One on this machine is watched by a pidfd instead: with its failure handling UCX gives up CMA and CUDA IPC,
and it does not notice zombies. What a dead peer has already sent is still received; everything else that names it
fails.

The files: `ucp_library.pxi` which library; `ucp_peers.pxi` endpoints; `ucp_engine.pxi` the worker that is progressed
and waited for; `ucp_shared.pxi` what is read where it lies; `ucp_requests.pxi` messages and their errors;
`ucp_script.pxi` whole programs; `ucp_gate.pxi` one thread at a time; `ucp_fastpath.pxi` whole calls; here what Python
calls.

One thread at a time may use a worker. A second one gets a `TransportError` and changes nothing.
"""

import os
import signal

cimport cython
cimport numpy
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libc.stdio cimport FILE, fclose
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memmove, memset
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlerror, dlopen

from hetcomm._ext.ucp_api cimport *
from hetcomm._ext.ucp_wait cimport *

from hetcomm.errors import CollectiveTimeoutError, PeerFailureError, TransportError, UsageError

numpy.import_array()

__all__ = [
    "SHARED", "SHELF_NBYTES", "FastPath", "Gate", "Ledger", "Peer", "PinnedCall", "Request", "Worker", "configured",
    "guard", "home_of", "refused", "resolve", "share", "unguard",
]

cdef ucp_tag_t PROOF_TAG = <ucp_tag_t>0xB << 44  # of the class that hetcomm.execution.tags leaves to transports
cdef extern from *:
    """
    #include <pthread.h>

    static unsigned hetcomm_forks; /* in the line of processes that led to this one, since the module was loaded */

    static void hetcomm_count_fork(void)
    {
        hetcomm_forks++;
    }

    static int hetcomm_watch_forks(void)
    {
        return pthread_atfork(NULL, NULL, hetcomm_count_fork);
    }
    """
    unsigned int hetcomm_forks
    int hetcomm_watch_forks()

if hetcomm_watch_forks() != 0:
    raise MemoryError("pthread_atfork failed")

cdef double PROOF_SECONDS = 1.0
cdef double QUICK_SECONDS = 0.02  # after which a quick message is handed over
cdef double SHARED_SECONDS = 0.0005  # between looks at messages that the owner of a shared worker may have moved

include "ucp_library.pxi"
include "ucp_peers.pxi"
include "ucp_shared.pxi"
include "ucp_engine.pxi"
include "ucp_requests.pxi"
include "ucp_script.pxi"
include "ucp_gate.pxi"
include "ucp_fastpath.pxi"

SHELF_NBYTES = SLOTS * MOST_SHELVED


cdef enum:
    MOST_EVENTS = 64  # that one `watch` looks at

ctypedef int (*EventQuery)(void* event) noexcept nogil


cdef class Worker:
    """A UCP worker with a context of its own, or one adopted from UCXX or ucx-py.

    Args:
        options: UCX settings by name without 'UCX_'; one this UCX does not know is listed in `unknown_options`.
        handle: The address of a running `ucp_worker_h` to share; it must be made for several threads
            (`UCS_THREAD_MODE_MULTI`) and tagged messages (`UCP_FEATURE_TAG`). It is neither configured nor destroyed,
            and its owner may progress it at any time, from any thread.

    Raises:
        TransportError: No library was resolved, or UCX cannot start; the message carries UCX's reason.
        UsageError: The worker to share lacks something.
    """

    cdef Engine _engine
    cdef set _inflight
    cdef Py_ssize_t _sweep_at
    cdef Request _done
    cdef bint _busy
    cdef int _roused  # written by other threads; a call of UCX lies between any two looks at it
    cdef unsigned int _calls
    cdef Gate _gate
    cdef unsigned int _forks  # when it was made: one that a child has inherited is never touched
    cdef object __weakref__
    cdef readonly tuple unknown_options

    def __cinit__(self):
        self._engine = Engine()
        self._inflight = set()
        self._sweep_at = 1024
        self._forks = hetcomm_forks
        self.unknown_options = ()

    def __init__(self, dict options=None, size_t handle=0):
        if _resolved is None:
            raise TransportError("no UCX library has been resolved", remedy="Call resolve() first.")
        if self._engine.worker != NULL:
            raise TransportError("this worker is already open")
        self._done = Request.__new__(Request)
        self._done.worker = self
        self._done.status = UCS_OK
        if handle:
            self._engine.adopt(handle)
            try:
                self._prove_tags()
            except BaseException:
                self.abandon()  # its owner may destroy it before this object is gone
                raise
        else:
            self.unknown_options = self._engine.open(options or {})

    cdef int _prove_tags(self) except -1:
        """See that a message to this worker itself arrives, for without UCP_FEATURE_TAG UCX drops it silently."""
        arrived = bytearray(1)
        try:
            self._engine.connect(-1, self._engine.address, 0)
            self.send_buffer(b"\1", -1, PROOF_TAG, PROOF_SECONDS)
            self.recv_buffer(arrived, -1, PROOF_TAG, PROOF_SECONDS)
        except (CollectiveTimeoutError, TransportError) as error:
            raise UsageError(
                "argument 'worker' is a UCP worker that delivers no tagged messages",
                remedy="Make its context with UCP_FEATURE_TAG (Feature.TAG of UCXX and ucx-py).",
            ) from error
        finally:
            self._engine.disconnect(0.2)
        return 0

    # ---- peers

    @property
    def address(self):
        """What another process needs to reach this worker."""
        return self._engine.address

    @property
    def closed(self):
        """Whether `close` was called."""
        return self._engine.worker == NULL

    @property
    def handle(self):
        """The address of the `ucp_worker_h`, as other bindings of UCX take it; 0 once closed."""
        return <size_t>self._engine.worker

    def connect(self, int peer, bytes address, size_t endpoint=0):
        """Make `peer` reachable under its number; its own number is allowed and loops back.

        `endpoint` is the address of an `ucp_ep_h` of this worker that leads there, to use instead of a new one. It is
        never closed, and its owner must not close it before this transport is.

        Raises:
            UsageError: `address` is not one of a hetcomm UCX transport, or `peer` stands for another address already.
            TransportError: UCX found no way to reach it; the message names the peer.
        """
        self._enter()
        self._busy = False
        if address[:MAGIC] not in (OWN, SHARED) or len(address) <= HEADER:
            raise UsageError(f"the address given for peer {peer} is not a UCX worker's", peer=peer)
        known = self._engine.peers.get(peer)
        if known is not None and (<Peer>known).address == address:
            return
        if known is not None:
            raise UsageError(f"peer {peer} is connected already", peer=peer, remedy="Number the peers differently.")
        self._engine.connect(peer, address, endpoint)

    @property
    def shared_peers(self):
        """The peers whose workers are shared with an owner, as this one's is; without itself."""
        if self._engine.owned:
            return []
        return [number for number, peer in self._engine.peers.items()
                if (<Peer>peer).address[:MAGIC] == SHARED and (<Peer>peer).address != self._engine.address]

    def supports_memory_type(self, str name):
        """Whether UCX moves memory of that type ('host', 'cuda', 'rocm') here."""
        cdef int kind = {"host": UCS_MEMORY_TYPE_HOST, "cuda": UCS_MEMORY_TYPE_CUDA, "rocm": UCS_MEMORY_TYPE_ROCM}[name]
        return bool(self._engine.memory_types >> kind & 1)

    @property
    def takes_offers(self):
        """Whether peers on this machine may offer it messages of programs that lie in memory they share.

        What they offer is copied by the processor, so it takes none where a program may receive into device memory: if
        its UCX reaches any, or after `decline_offers`. Peers learn that from `address`.
        """
        return self._engine.takes_offers

    def decline_offers(self):
        """Take no offers.

        Raises:
            UsageError: Peers are connected, who may know better.
        """
        if self._engine.peers:
            raise UsageError("offers can be declined only before peers are connected", remedy="Call it first.")
        self._engine.decline_offers()

    def lane_names(self):
        """For each peer, the transports UCX has chosen, as 'transport/device' strings."""
        cdef Peer target
        self._enter()
        self._busy = False
        return {number: target.lanes() for number, target in self._engine.peers.items()}

    def describe(self, int peer):
        """UCX's own text about the endpoint of `peer`: lanes, protocols and thresholds."""
        cdef Peer target = self._peer(peer)
        self._enter()
        self._busy = False
        return target.describe()

    def fileno(self):
        """The descriptor that becomes readable when there is something to progress; -1 if this UCX has none."""
        return self._engine.watch.fds[0].fd if self._engine.watch.count else -1

    @property
    def companion(self):
        """Called now and then while this worker waits, or None: moves what must go on meanwhile.

        What it raises ends the wait. It must not use this worker.
        """
        return self._engine.companion

    @companion.setter
    def companion(self, value):
        self._engine.companion = value

    @property
    def gate(self):
        """The `Gate` that whoever uses the quick messages must have; None: these are not used."""
        return self._gate

    @gate.setter
    def gate(self, Gate value):
        self._gate = value

    cdef inline Peer _peer(self, int number):
        found = self._engine.peers.get(number)
        if found is None:
            if self._engine.worker == NULL:
                self._enter()
            raise UsageError(f"peer {number} is not connected", peer=number, remedy="Call connect() first.")
        return <Peer>found

    cdef inline int _enter(self) except -1:
        """Every call that touches UCX starts here and resets `_busy` when it leaves."""
        if self._engine.worker == NULL:
            raise TransportError("this UCX transport is closed", remedy="Open a new one.")
        if self._forks != hetcomm_forks:
            raise UsageError(
                f"this UCX transport is that of a process of which this one, {os.getpid()}, is a forked child",
                remedy="Open a new one after the fork, or start the child with os.execv, subprocess or 'spawn'.",
            )
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
        cdef void* handle
        cdef Request request
        self._enter()
        param.op_attr_mask = 0
        with nogil:
            handle = self._start(peer, <void*>address, nbytes, tag, is_recv, &param, &info)
        self._busy = False
        if handle == NULL and not is_recv:
            return self._done
        request = self._request(peer, handle, nbytes, tag, is_recv, keep)
        request.address = <void*>address
        if handle == NULL:
            request.moved = info.length
            request._take(keep)
        return request

    cdef inline void* _start(
        self, Peer peer, void* address, size_t nbytes, ucp_tag_t tag, bint is_recv,
        ucp_request_param_t* param, ucp_tag_recv_info_t* info,
    ) noexcept nogil:
        if is_recv:
            param.op_attr_mask |= UCP_OP_ATTR_FIELD_RECV_INFO
            param.tag_info = info
            return ucp_tag_recv_nbx(self._engine.worker, address, nbytes, tag, <ucp_tag_t>-1, param)
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
            self._blocking(buffer, view.buf, view.len, target, tag, False, timeout, None)
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
            return self._blocking(buffer, view.buf, view.len, target, tag, True, timeout, None)
        finally:
            PyBuffer_Release(&view)

    def exchange_buffers(
        self, object outgoing, int peer, ucp_tag_t tag, object incoming, int source, ucp_tag_t source_tag,
        double timeout,
    ):
        """`send_buffer` of one and `recv_buffer` into another at the same time; -1, and nothing done, if they overlap.

        Raises:
            As these do.
        """
        cdef Peer target = self._peer(peer)
        cdef Peer origin = self._peer(source)
        cdef Py_buffer given, wanted
        _export(outgoing, &given, PyBUF_C_CONTIGUOUS, "send_recv")
        try:
            _export(incoming, &wanted, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE, "send_recv")
            try:
                if <char*>given.buf < <char*>wanted.buf + wanted.len and (
                        <char*>wanted.buf < <char*>given.buf + given.len):
                    return -1
                return self._exchange(
                    outgoing, &given, target, tag, incoming, &wanted, origin, source_tag, timeout, None)
            finally:
                PyBuffer_Release(&wanted)
        finally:
            PyBuffer_Release(&given)

    cdef Py_ssize_t _exchange(
        self, object outgoing, Py_buffer* given, Peer target, ucp_tag_t tag, object incoming, Py_buffer* wanted,
        Peer origin, ucp_tag_t source_tag, double timeout, list left,
    ) except -1:
        cdef ucp_request_param_t param
        cdef ucp_tag_recv_info_t info
        cdef void* arriving
        cdef void* leaving
        cdef ucs_status_t got = UCS_OK, gone = UCS_OK
        cdef Waiter waiter
        cdef int turn = GO_ON
        cdef Request first, second
        self._enter()
        param.op_attr_mask = UCP_OP_ATTR_FIELD_MEMORY_TYPE
        param.memory_type = UCS_MEMORY_TYPE_HOST
        with nogil:
            arriving = self._start(origin, wanted.buf, wanted.len, source_tag, True, &param, &info)
            param.op_attr_mask = UCP_OP_ATTR_FIELD_MEMORY_TYPE
            leaving = self._start(target, given.buf, given.len, tag, False, &param, &info)
            waiter = wait_for(timeout, self._engine.companion is not None)
            while True:
                got, gone = UCS_OK, UCS_OK
                if UCS_PTR_IS_ERR(arriving):
                    got = UCS_PTR_STATUS(arriving)
                elif arriving != NULL:
                    got = ucp_tag_recv_request_test(arriving, &info)
                if UCS_PTR_IS_ERR(leaving):
                    gone = UCS_PTR_STATUS(leaving)
                elif leaving != NULL:
                    gone = ucp_request_check_status(leaving)
                if got != UCS_INPROGRESS and (gone != UCS_INPROGRESS or got != UCS_OK):
                    break
                if gone != UCS_OK and gone != UCS_INPROGRESS:
                    break
                if got == UCS_INPROGRESS and origin.link.failed != UCS_OK:
                    break
                if gone == UCS_INPROGRESS and target.link.failed != UCS_OK:
                    break
                turn = self._engine.turn(&waiter)
                if turn != GO_ON:
                    break
            if got == UCS_OK and gone == UCS_OK:
                if arriving != NULL:
                    ucp_request_free(arriving)
                if leaving != NULL:
                    ucp_request_free(leaving)
        self._busy = False
        if got == UCS_OK and gone == UCS_OK:
            return info.length
        first = self._request(origin, arriving, wanted.len, source_tag, True, memoryview(incoming))
        second = self._request(target, leaving, given.len, tag, False, memoryview(outgoing))
        if left is not None and turn == LATE:
            left += (first, second)
            return 0
        _conclude(self._engine, [first, second], turn, timeout)
        return first.moved

    cdef Py_ssize_t _blocking(
        self, object owner, void* address, size_t nbytes, Peer peer, ucp_tag_t tag, bint is_recv, double timeout,
        list left,
    ) except -1:
        """`timeout` ends it, or with `left` only the wait: then the request is put there."""
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
                waiter = wait_for(timeout, self._engine.companion is not None)
                while True:
                    if is_recv:
                        status = ucp_tag_recv_request_test(handle, &info)
                    else:
                        status = ucp_request_check_status(handle)
                    if status != UCS_INPROGRESS or peer.link.failed != UCS_OK:
                        break
                    turn = self._engine.turn(&waiter)
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
        if left is not None and turn == LATE:
            left.append(request)
            return 0
        _conclude(self._engine, [request], turn, timeout)
        return request.moved

    # ---- quick messages: for who has the gate of the process, and goes on with what is not over after a short while

    def quick_send(self, object buffer, int peer, ucp_tag_t tag):
        """Send a buffer as `send_buffer` does.

        Returns:
            None if it is over, the request if it goes on, or NotImplemented, and nothing was done, where another call
            is under way in this process.

        Raises:
            UsageError, PeerFailureError: As for `send_buffer`.
        """
        return self._quick(buffer, peer, tag, False)

    def quick_recv(self, object buffer, int peer, ucp_tag_t tag):
        """Receive into a buffer as `recv_buffer` does; returns what `quick_send` does, but the bytes if it is over."""
        return self._quick(buffer, peer, tag, True)

    cdef inline bint _is_free(self) except -1:
        """Whether nobody is at it, in this thread or another."""
        return self._gate is not None and not self._gate.depth and not self._busy

    cdef object _quick(self, object buffer, int peer, ucp_tag_t tag, bint is_recv):
        cdef Peer target = self._peer(peer)
        cdef Py_buffer view
        cdef list left = []
        cdef Py_ssize_t nbytes
        if not self._is_free():
            return NotImplemented
        _export(buffer, &view, PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if is_recv else 0), "recv" if is_recv else "send")
        self._gate._take()
        try:
            nbytes = self._blocking(buffer, view.buf, view.len, target, tag, is_recv, QUICK_SECONDS, left)
        finally:
            self._gate.depth -= 1
            PyBuffer_Release(&view)
        if left:
            return left[0]
        return nbytes if is_recv else None

    def quick_exchange(
        self, object outgoing, int peer, ucp_tag_t tag, object incoming, int source, ucp_tag_t source_tag
    ):
        """Both at the same time, as `exchange_buffers`: the bytes that arrived if both are over, or both requests, the
        receive first.

        Returns:
            NotImplemented also if the buffers overlap.
        """
        cdef Peer target = self._peer(peer)
        cdef Peer origin = self._peer(source)
        cdef Py_buffer given, wanted
        cdef list left = []
        cdef Py_ssize_t nbytes
        if not self._is_free():
            return NotImplemented
        _export(outgoing, &given, PyBUF_C_CONTIGUOUS, "send_recv")
        try:
            _export(incoming, &wanted, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE, "send_recv")
            try:
                if <char*>given.buf < <char*>wanted.buf + wanted.len and (
                        <char*>wanted.buf < <char*>given.buf + given.len):
                    return NotImplemented
                self._gate._take()
                try:
                    nbytes = self._exchange(outgoing, &given, target, tag, incoming, &wanted, origin, source_tag,
                                            QUICK_SECONDS, left)
                finally:
                    self._gate.depth -= 1
            finally:
                PyBuffer_Release(&wanted)
        finally:
            PyBuffer_Release(&given)
        return tuple(left) if left else nbytes

    def script(self, list steps, object memory, object dtype):
        """A program on host memory, made to run without Python but for the calls of vendors.

        Args:
            steps: One dictionary for each, as `hetcomm.execution.native` writes them.
            memory: Makes what vendors are given: `hetcomm.types.Memory`.
            dtype: The type of its elements.
        """
        return _script(self, steps, memory, dtype)

    def lend(self, object memory):
        """Let scripts copy messages to shared memory (`share`), for peers on this machine to take them from there.

        Args:
            memory: A writable buffer in it of at least `SHELF_NBYTES` bytes, which is kept until `close`.
        """
        cdef Py_buffer view
        _export(memory, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE, "lend")
        try:
            if view.len < SHELF_NBYTES:
                raise UsageError(f"a shelf has {SHELF_NBYTES} bytes; {view.len} were given")
            self._engine.shelf.open(<char*>view.buf, memory)
        finally:
            PyBuffer_Release(&view)

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
        failures = self._engine.failures
        try:
            for item in requests:
                request = <Request?>item
                request._look()
                if request.status == UCS_INPROGRESS:
                    if not started:
                        waiter = wait_for(timeout, self._engine.companion is not None)
                        started = True
                    with nogil:
                        while ucp_request_check_status(request.handle) == UCS_INPROGRESS:
                            turn = self._engine.turn(&waiter)
                            if turn != GO_ON or self._engine.failures != failures:
                                break
                    request._look()
                if request.status != UCS_OK:
                    break
            else:
                return
        finally:
            self._busy = False
        if turn == GO_ON and self._engine.failures != failures and _unharmed(requests):
            self.wait(requests, waiter.deadline - now())
            return
        _conclude(self._engine, list(requests), turn, timeout)

    def progress(self):
        """Move messages along without waiting; whether anything happened."""
        cdef unsigned int moved
        self._enter()
        try:
            with nogil:
                moved = ucp_worker_progress(self._engine.worker)
            self._calls += 1
            if not moved and self._calls & 255 == 0:
                self._engine.patrol()
        finally:
            self._busy = False
        return moved != 0

    def failed_peers(self):
        """The numbers of the peers that are known to have failed; looks now which processes of this machine have ended.
        """
        cdef Peer peer
        self._enter()
        try:
            self._engine.patrol()
        finally:
            self._busy = False
        failed = set()
        for number, item in self._engine.peers.items():
            peer = <Peer>item
            if peer.link.failed != UCS_OK:
                failed.add(number)
        return frozenset(failed)

    def dying_peers(self):
        """The numbers of the peers on this machine that have been killed, and have not ended yet."""
        return frozenset([
            number for number, item in self._engine.peers.items()
            if (<Peer>item).pidfd >= 0 and (<Peer>item).link.failed == UCS_OK and _is_dying((<Peer>item).pid())
        ])

    def processes(self):
        """The process of each peer on this machine, by the peer's number; without this process itself."""
        return {number: (<Peer>item).link.pid for number, item in self._engine.peers.items()
                if (<Peer>item).pidfd >= 0}

    def heed(self, object herald):
        """Let `herald` say which peers have failed, too: whichever are in `herald.dead()`.

        It is asked when the descriptor `herald.fileno()` is readable, which that makes unreadable. None ends it, which
        must come before the herald's end.
        """
        self._engine.heed(herald)

    def watch(self, double seconds, size_t query=0, object events=()):
        """Progress until something has happened, `rouse` is called, or `seconds` have passed; whether something has.

        It has, too, when `query`, the address of a C function `int query(void* event)`, is 0 for one of `events`.
        Spins a little, then yields the processor; the GIL is not held. Other threads must not use the worker meanwhile.
        """
        cdef double deadline = now() + (seconds if self._engine.owned else min(seconds, SHARED_SECONDS))
        cdef unsigned int moved = 0, turns = 0
        cdef Py_ssize_t index, count = 0
        cdef size_t[MOST_EVENTS] watched
        if query:
            for event in events[:MOST_EVENTS]:
                watched[count] = event
                count += 1
        self._enter()
        with nogil:
            while True:
                moved = ucp_worker_progress(self._engine.worker)
                for index in range(count):
                    if (<EventQuery>query)(<void*>watched[index]) == 0:
                        moved = 1
                        break
                if moved or self._roused or now() >= deadline:
                    break
                turns += 1
                if turns > SPINS:
                    sched_yield()
        self._roused = False
        self._busy = False
        return moved != 0

    def rouse(self):
        """End the `watch` that another thread is in, or comes to next."""
        self._roused = True

    def flush(self, double timeout):
        """Wait until all that was sent has left this process for good; peers that have failed are passed over.

        Raises:
            CollectiveTimeoutError: `timeout` seconds passed; nothing has been cancelled.
        """
        cdef double deadline = now() + timeout
        cdef Request request
        self._enter()
        try:
            for item in [item for item in self._inflight if not (<Request>item).is_recv]:
                request = <Request>item
                self._engine.drain(request.handle, request.peer, deadline)
                request._look()
            self._engine.flush(deadline)
        finally:
            self._busy = False

    def statistics(self):
        """Counts: messages under way, and of those of programs how many came by way of shared memory."""
        return {"inflight": len(self._inflight), "taken": self._engine.taken}

    # ---- the end

    def close(self, double timeout=1.0):
        """Cancel what is under way and release everything; calling it again does nothing.

        Messages already handed to UCX get `timeout` seconds to leave. A peer that is still talking to this worker sees
        a failure, so agree on the end before closing.
        """
        cdef Request request
        if self._engine.worker == NULL:
            return
        if timeout > 0:
            try:
                self.flush(timeout)
            except CollectiveTimeoutError:
                pass  # closing must end; the peer learns of it as a failure
        self._enter()
        try:
            for item in list(self._inflight):
                ucp_request_cancel(self._engine.worker, (<Request>item).handle)
            self._engine.disconnect(0.2)
            for item in list(self._inflight):
                request = <Request>item
                request._look()
                if request.handle != NULL:
                    if not self._engine.owned:
                        _outlived.append(request.keep)
                    request._settle(UCS_ERR_CANCELED)
            self._engine.close()
        finally:
            self._busy = False

    def abandon(self):
        """Take this transport for closed without a call of UCX, since the owner has destroyed the shared worker."""
        cdef Request request
        for item in self._inflight:
            request = <Request>item
            request.handle = NULL
            request.status = UCS_ERR_CANCELED
        self._inflight.clear()
        self._engine.shelf = Shelf.__new__(Shelf)
        self._engine.close()

    def __del__(self):
        if self._forks == hetcomm_forks:
            self._busy = False
            self.close(0)
