# Messages on their way, the errors they end with, and the Python buffers they are made of.


@cython.final
@cython.freelist(64)
cdef class Request:
    """One message on its way; made by `Worker.send` and `Worker.recv` only."""

    cdef Worker worker
    cdef Peer peer
    cdef object keep
    cdef void* address
    cdef void* handle          # NULL once UCX is done with it
    cdef ucs_status_t status   # in progress, or what its owner is told
    cdef bint is_recv
    cdef size_t posted
    cdef size_t moved
    cdef size_t taken          # bytes of the message that came as parts
    cdef uint64_t number       # of the offer of the first
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
        if self.status == UCS_INPROGRESS and self.worker._engine.worker != NULL:
            ucp_request_cancel(self.worker._engine.worker, self.handle)

    cdef int _look(self) except -1:
        """Bring `status` up to date with UCX and with the peer's health."""
        cdef ucs_status_t status
        cdef ucp_tag_recv_info_t info
        if self.handle != NULL:
            if self.worker._engine.worker == NULL:
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
                keep = self.keep
                self._settle(status)
                if self.status == UCS_OK and self.is_recv:
                    self._take(keep)
            elif self.peer.link.failed != UCS_OK and self.status == UCS_INPROGRESS:
                ucp_request_cancel(self.worker._engine.worker, self.handle)
                self.status = self.peer.link.failed
        return 0

    cdef int _take(self, object keep) except -1:
        """If what has arrived is an offer, take it, and receive what follows; `keep` owns the memory."""
        cdef ucp_request_param_t param
        cdef ucp_tag_recv_info_t info
        cdef Engine engine = self.worker._engine
        cdef Offer offer
        cdef const char* src
        cdef char* place
        cdef size_t room
        cdef void* handle
        while True:
            place, room = <char*>self.address + self.taken, self.posted - self.taken
            if (self.moved == room or self.tag & COLLECTIVE != COLLECTIVE or not engine.takes_offers
                    or not is_offer(place, self.moved)):
                self.moved += self.taken
                return 0
            offer = (<Offer*>place)[0]
            if offer.rest > room or offer.nbytes > offer.rest:
                self.moved = 0  # of an offer that contradicts itself; never what was expected
                if offer.nbytes <= offer.rest:
                    self.moved = self.taken + offer.rest
                if self.peer.link.failed == UCS_OK:
                    answer(self.peer.link.ep, &offer, &TAKEN)
                return 0
            src = see(&engine.views, &offer, self.peer.link.pid)
            if self.taken == 0:
                self.number = offer.number
            if src != NULL:
                copy_over(place, src, offer.nbytes)
                engine.taken += 1
                self.taken += offer.nbytes
            if self.peer.link.failed == UCS_OK:
                answer(self.peer.link.ep, &offer, &TAKEN if src != NULL else &DECLINED)
            if src != NULL and offer.nbytes == offer.rest:
                self.moved = self.taken
                return 0
            param.op_attr_mask = UCP_OP_ATTR_FIELD_RECV_INFO
            param.tag_info = &info
            handle = ucp_tag_recv_nbx(
                engine.worker, <char*>self.address + self.taken, self.posted - self.taken, FOLLOWS | self.number,
                <ucp_tag_t>-1, &param)
            if UCS_PTR_IS_ERR(handle):
                self.status = UCS_PTR_STATUS(handle)
                return 0
            if handle != NULL:
                self.handle, self.status, self.keep = handle, UCS_INPROGRESS, keep
                self.worker._inflight.add(self)
                return 0
            self.moved = info.length

    cdef int _settle(self, ucs_status_t status) except -1:
        """UCX is done with the request: give it and its memory back."""
        ucp_request_free(self.handle)
        self.handle = NULL
        if self.status == UCS_INPROGRESS:
            self.status = status
        self.worker._inflight.discard(self)
        self.keep = None
        return 0

    cdef int _raise(self) except -1:
        raise _failure(self)


cdef bint _unharmed(object requests) except -1:
    """Whether none of `requests` has failed: a peer died, but not one of theirs."""
    cdef Request request
    for item in requests:
        request = <Request>item
        request._look()
        if request.status != UCS_OK and request.status != UCS_INPROGRESS:
            return False
    return True


cdef int _conclude(Engine engine, list requests, int turn, double timeout) except -1:
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
            ucp_worker_progress(engine.worker)
    if turn == INTERRUPTED:
        engine.raise_interruption()
    if culprit is not None:
        culprit._raise()
    if late:
        raise _timeout(late, timeout)
    return 0


cdef object _timeout(list late, double timeout):
    """The error for requests that did not complete in `timeout` seconds."""
    cdef Request first = late[0]
    what = "message from" if first.is_recv else "send to"
    more = f" and {len(late) - 1} more" if len(late) > 1 else ""
    return CollectiveTimeoutError(
        f"waited {timeout:g} s in vain for the {what} peer {first.peer.number} "
        f"(tag {first.tag:#x}, {first.posted} bytes){more}",
        peer=first.peer.number,
        remedy="See whether that peer is alive and makes the same calls; HETCOMM_TIMEOUT sets the limit.",
    )


cdef object _failure(Request request):
    """The error for a request that is over but did not succeed."""
    cdef Peer peer = request.peer
    cdef ucs_status_t status = request.status
    what = "receive from" if request.is_recv else "send to"
    if request.worker._engine.worker == NULL:
        return TransportError(
            f"the {what} peer {peer.number} ended because the transport was closed", peer=peer.number)
    if peer.link.failed != UCS_OK or status == UCS_ERR_CONNECTION_RESET:
        return PeerFailureError(
            f"peer {peer.number} is gone: {_text(peer.link.failed or status)}",
            peer=peer.number,
            remedy="Close this communicator, or shrink it; that peer's output may say why it ended.",
        )
    if status == UCS_ERR_MESSAGE_TRUNCATED:
        return TransportError(
            f"the message from peer {peer.number} (tag {request.tag:#x}) is longer than the {request.posted} bytes "
            "given for it",
            peer=peer.number,
            remedy="Receive into an array at least as long as the sender's.",
        )
    if status == UCS_ERR_CANCELED:
        return TransportError(f"the {what} peer {peer.number} (tag {request.tag:#x}) was cancelled", peer=peer.number)
    return TransportError(
        f"the {what} peer {peer.number} (tag {request.tag:#x}, {request.posted} bytes) failed: {_text(status)}",
        peer=peer.number,
    )


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
