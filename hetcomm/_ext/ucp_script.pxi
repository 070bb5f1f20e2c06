# Programs on host memory: what `hetcomm.execution.binding` has derived, as C. Messages and local work run without
# Python; a vendor's calls are started and polled through it.

cdef extern from "ucp_local.h" nogil:
    ctypedef void (*Loop "hetcomm_loop")(
        void* dst, const void* other, const void* src, size_t count, const void* value)
    Loop loop_for "hetcomm_loop_for" (const char* dtype, const char* what, int plain)

cdef enum:
    DO_SEND, DO_RECV, DO_COPY, DO_LOOP, DO_CALL
    NBUFFERS = 3
    WIDEST = 16        # bytes of an element
    PATIENCE = 200     # turns that one `Run.test(True)` takes before it comes back to Python

cdef enum:
    RUN_DONE, RUN_WAITS, RUN_FAILED, RUN_CALLS, RUN_STALLS

cdef enum:
    A_MESSAGE        # what is under way,
    AN_OFFER         # that of one's own: its answer,
    A_TRIFLE         # or what is sent and not waited for


cdef double STALL_SECONDS = 0.01  # that messages wait for a place on the shelf


cdef struct Op:
    int kind
    int buffer           # of the message, or where the result goes
    int other            # where it comes from
    size_t offset
    size_t other_offset
    size_t nbytes
    size_t count
    ucp_tag_t tag
    int peer             # in `Script.peers`
    int taken_by         # of a receive: the reduction that alone needs what it brings, or -1
    Loop loop
    bint is_token        # of a message: it is empty, and goes nevertheless
    bint is_fresh        # whether what is sent is a result: it will be written again where it lies
    bint scales          # by the factor of the run,
    char[WIDEST] value   # else with this
    int first_start      # in `Script.unlocks`: steps that wait until this one is started,
    int nstarts
    int first_end        # and until it is complete
    int nends
    int waits            # for so many others


cdef struct Active:
    int op
    int what
    void* handle
    Offered* offered     # of an offer,
    Slot* slot           # and where on the shelf it is; NULL: it is not


cdef struct Parts:
    size_t done          # bytes of a message that have gone or come as parts of it
    uint64_t number      # of the offer of the first
    bint reduced         # as they came, where they lay


@cython.final
cdef class Script:
    """A program ready to run natively, as often as wanted; made by `Worker.script`."""

    cdef Worker worker
    cdef list peers
    cdef Link** links    # of the peers
    cdef Op* ops
    cdef int* unlocks
    cdef int nops
    cdef bint scales     # whether some steps multiply by the factor of the run
    cdef bint reduces
    cdef bint takes_long  # whether it receives what is longer than a part on the shelf
    cdef dict calls      # by step: how a vendor's call is started, its collective, and where its input and output are
    cdef object memory   # `hetcomm.types.Memory`, which a vendor is given,
    cdef object dtype    # and the type of its elements
    cdef list spare      # runs that are over

    def __cinit__(self):
        self.peers = []
        self.spare = []
        self.calls = {}

    def __init__(self):
        raise TypeError("a Script is made by Worker.script")

    def __dealloc__(self):
        free(self.links)
        free(self.ops)
        free(self.unlocks)

    def start(self, size_t in_address, size_t out_address, size_t scratch_address, ucp_tag_t tag, bytes factor):
        """Begin a run on three buffers; `factor` is the element that is multiplied by. Nothing has been started."""
        cdef Run run = self._start(in_address, out_address, scratch_address, tag)
        _put(run.factor, factor)
        return run

    cdef Run _start(self, size_t in_address, size_t out_address, size_t scratch_address, ucp_tag_t tag):
        cdef Run run
        cdef int index
        if not (may_touch(<void*>in_address, 1) and may_touch(<void*>out_address, 1)
                and may_touch(<void*>scratch_address, 1)):
            raise TransportError("a script was given memory that is not the host's")
        if self.spare:
            run = <Run>self.spare.pop()
        else:
            run = Run.__new__(Run, self)
        run.buffers[0] = in_address
        run.buffers[1] = out_address
        run.buffers[2] = scratch_address
        run.tag = tag
        run.left = self.nops
        run.nready = run.nactive = run.ndue = run.ncalled = run.stalled_count = 0
        run.wrong_step = -1
        run.fault = UCS_OK
        if run.times != NULL:
            free(run.times)
            run.times = NULL
        run.failures = self.worker._engine.failures
        run.engine = self.worker._engine
        for peer in self.peers:
            (<Peer>peer).sent = True
        memset(run.parts, 0, self.nops * sizeof(Parts))
        for index in range(self.nops):
            run.waits[index] = self.ops[index].waits
        for index in range(self.nops - 1, -1, -1):  # so that the first is started first
            if run.waits[index] == 0:
                run.ready[run.nready] = index
                run.nready += 1
        return run


@cython.final
cdef class Run:
    """One run of a `Script`."""

    cdef Script script
    cdef Engine engine
    cdef size_t[NBUFFERS] buffers
    cdef ucp_tag_t tag
    cdef char[WIDEST] factor
    cdef int left
    cdef int nready
    cdef int nactive
    cdef int ndue
    cdef int stalled_count
    cdef double stalled_until
    cdef unsigned int failures
    cdef int* waits
    cdef int* ready
    cdef int* due          # vendor calls that are ready and have not been started
    cdef int* stalled      # sends that wait for room on the shelf
    cdef Parts* parts      # of the message of each step
    cdef Active* active
    cdef Offered* offered  # one for each step; NULL before the first
    cdef double* times     # when each step was started, then when it was complete; NULL: nobody asks
    cdef list calling      # vendor calls under way: step, operation
    cdef dict memories     # what the last run passed to each vendor call
    cdef Active failed     # the message that failed, if there is one:
    cdef ucs_status_t fault
    cdef int wrong_step    # or the step whose message had the wrong length, or -1
    cdef size_t wrong_nbytes
    # Those of the collective call, and of the run among all of its communicator; what the ranks must agree on.
    cdef readonly long long call, number
    cdef readonly int ncalled  # vendor calls it has started
    cdef readonly unsigned int check

    def __init__(self, *_):
        raise TypeError("a Run is made by Script.start")

    def __cinit__(self, Script script not None):
        self.script = script
        self.waits = <int*>malloc((script.nops + 1) * sizeof(int))
        self.ready = <int*>malloc((script.nops + 1) * sizeof(int))
        self.due = <int*>malloc((script.nops + 1) * sizeof(int))
        self.stalled = <int*>malloc((script.nops + 1) * sizeof(int))
        self.parts = <Parts*>malloc((script.nops + 1) * sizeof(Parts))
        self.active = <Active*>malloc((2 * script.nops + 1) * sizeof(Active))
        self.calling = []
        self.memories = {}
        if (self.waits == NULL or self.ready == NULL or self.due == NULL or self.stalled == NULL
                or self.parts == NULL or self.active == NULL):
            raise MemoryError()

    def __dealloc__(self):
        free(self.waits)
        free(self.ready)
        free(self.due)
        free(self.stalled)
        free(self.parts)
        free(self.active)
        free(self.offered)
        free(self.times)

    @property
    def length_mismatch(self):
        """Step and bytes of the message of the wrong length that ended it, or None."""
        return None if self.wrong_step < 0 else (self.wrong_step, self.wrong_nbytes)

    @property
    def due(self):
        """Whether a vendor call is ready to be started."""
        return self.ndue > 0

    @property
    def in_vendors(self):
        """The vendor calls under way, each as its step and operation."""
        return list(self.calling)

    def record(self):
        """Note from now on when steps are started and complete; see `times`."""
        if self.times == NULL:
            self.times = <double*>calloc(2 * self.script.nops + 1, sizeof(double))
            if self.times == NULL:
                raise MemoryError()
        memset(self.times, 0, 2 * self.script.nops * sizeof(double))

    def spans(self):
        """For each step that was started and completed since `record`: itself, and both times (of `time.monotonic`)."""
        cdef int index, n = self.script.nops
        if self.times == NULL:
            return []
        return [(index, self.times[index], self.times[n + index]) for index in range(n)
                if self.times[index] and self.times[n + index]]

    def start_calls(self):
        """Start the vendor calls that are ready, in the order in which they became so; how many.

        Raises:
            VendorError: The vendor refused one, or failed.
        """
        cdef int place, index, count = self.ndue
        for place in range(count):
            index = self.due[place]
            start, collective, source, target = self.script.calls[index]
            if self.times != NULL:
                self.times[index] = now()
            operation = start(collective, self._memory(index, 0, source), self._memory(index, 1, target))
            self.calling.append((index, operation))
            self._started(index)
        self.ncalled += count
        self.ndue -= count
        if self.ndue:
            memmove(self.due, self.due + count, self.ndue * sizeof(int))
        return count

    cdef object _memory(self, int index, int which, object place):
        """A part of a buffer as a vendor takes it, without an owner: whoever runs this has that."""
        cdef size_t address
        if place is None:
            return None
        buffer, offset, count = place
        address = self.buffers[<int>buffer] + <size_t>offset
        known = self.memories.get((index, which))
        if known is not None and known.address == address:
            return known
        memory = self.script.memory(address, count, self.script.dtype)
        self.memories[index, which] = memory
        return memory

    cdef bint _poll_calls(self) except -1:
        """Ask the vendors; whether a call is over. Their operations may take the GIL away, but not the worker."""
        cdef bint any_over = False
        cdef Py_ssize_t place = 0
        while place < len(self.calling):
            index, operation = self.calling[place]
            if operation.test():
                del self.calling[place]
                self._complete(index)
                any_over = True
            else:
                place += 1
        return any_over

    def test(self, bint patient):
        """Start what can be started and collect what has completed; whether all is done. See `due` if not.

        With `patient` it progresses the worker for some microseconds meanwhile.

        Raises:
            TransportError, PeerFailureError: A message failed; `detach` has the others.
            VendorError: A vendor's call failed.
        """
        cdef Worker worker = self.script.worker
        cdef int state
        cdef bint in_vendors
        if self.fault != UCS_OK or self.wrong_step >= 0:
            self._raise()
        while True:
            in_vendors = bool(self.calling)
            worker._enter()
            try:
                with nogil:
                    state = self._turns(PATIENCE if patient and not in_vendors else 1)
            finally:
                worker._busy = False
            if state == RUN_FAILED:
                self._raise()
                continue
            if state == RUN_DONE or not self.calling or not self._poll_calls():
                return state == RUN_DONE

    def release(self):
        """It is done: let another run have what it consists of."""
        self._release()

    cdef int _release(self) except -1:
        self.script.spare.append(self)
        return 0

    def under_way(self):
        """The steps whose messages or vendor calls are under way."""
        messages = [self.active[index].op for index in range(self.nactive) if self.active[index].what != A_TRIFLE]
        messages += [self.stalled[index] for index in range(self.stalled_count)]
        return messages + [index for index, _ in self.calling]

    def waits_for_turn(self):
        """The vendor calls that are ready and have not been started."""
        return [self.due[place] for place in range(self.ndue)]

    def contradiction(self):
        """Whether a message lies here for another plan of the same run.

        Returns:
            The step that waits for one, and the check bits of the one that has come; None if there is none.
        """
        cdef ucp_tag_recv_info_t info
        cdef ucp_tag_t tag
        cdef Op* op
        cdef int place
        cdef void* message = NULL
        cdef Worker worker = self.script.worker
        for place in range(self.nactive):
            op = &self.script.ops[self.active[place].op]
            if op.kind != DO_RECV or self.active[place].what != A_MESSAGE or self.parts[self.active[place].op].done:
                continue
            tag = op.tag | self.tag
            worker._enter()
            with nogil:
                message = ucp_tag_probe_nb(self.engine.worker, tag, ~(CHECK | CHANNEL), 0, &info)
            worker._busy = False
            if message != NULL and info.sender_tag & CHECK != tag & CHECK:
                return self.active[place].op, info.sender_tag & CHECK
        return None

    def detach(self):
        """The messages under way, as requests; it is over. Vendor calls under way stay in `in_vendors`."""
        cdef int index
        requests = [self._request(&self.active[index]) for index in range(self.nactive)]
        self.nactive = self.nready = self.ndue = self.stalled_count = 0
        return requests

    cdef Request _request(self, Active* active):
        cdef Op* op = &self.script.ops[active.op]
        cdef Peer peer = <Peer>self.script.peers[op.peer]
        cdef Worker worker = self.script.worker
        cdef Request request
        if active.what == A_MESSAGE:
            request = worker._request(peer, active.handle, op.nbytes, op.tag | self.tag, op.kind == DO_RECV, None)
            request.address = self._place(op.buffer, op.offset)
            request.taken, request.number = self.parts[active.op].done, self.parts[active.op].number
            return request
        if active.slot != NULL:
            active.slot.handle, active.slot.held = NULL, False
        keep = self, self.engine.shelf.keep
        return worker._request(peer, active.handle, sizeof(Offer), op.tag | self.tag, active.what == AN_OFFER, keep)

    cdef int _raise(self) except -1:
        """Raise the error of what has failed."""
        cdef Request request
        if self.wrong_step >= 0:
            raise TransportError(
                f"received {self.wrong_nbytes} bytes where {self.script.ops[self.wrong_step].nbytes} were expected")
        if self.fault != UCS_OK:
            request = self._request(&self.failed)
            if request.handle == NULL:
                request.status = self.fault
            self.fault = UCS_OK
            request._look()
            request._raise()
        for failed in self._failed():
            (<Request>failed)._raise()
        return 0

    cdef list _failed(self):
        """Requests for the messages whose peers are gone, which are then not the run's any more."""
        cdef int index = 0
        cdef Request request
        found = []
        while index < self.nactive:
            if self.script.links[self.script.ops[self.active[index].op].peer].failed != UCS_OK:
                request = self._request(&self.active[index])
                self.nactive -= 1
                self.active[index] = self.active[self.nactive]
                request._look()
                found.append(request)
            else:
                index += 1
        return [request for request in found if (<Request>request).status != UCS_OK]

    cdef int _turns(self, int most) noexcept nogil:
        cdef int turn, state
        for turn in range(most):
            state = self._advance()
            if state != RUN_WAITS:
                return state
            if turn + 1 < most and ucp_worker_progress(self.engine.worker) == 0:
                if self.failures != self.engine.failures:
                    break
                if turn > SPINS:  # ranks may outnumber the cores
                    sched_yield()
        if self.failures != self.engine.failures:
            return self._look_at_peers()
        return RUN_WAITS

    cdef int _look_at_peers(self) noexcept nogil:
        """A peer has failed: whether it is one of those waited for."""
        cdef int index
        for index in range(self.nactive):
            if self.script.links[self.script.ops[self.active[index].op].peer].failed != UCS_OK:
                return RUN_FAILED
        self.failures = self.engine.failures
        return RUN_WAITS

    cdef int _advance(self) noexcept nogil:
        """Start all that is ready and collect all that has completed, until neither is left; vendor calls are left."""
        cdef int index, state
        if self.stalled_count:
            state = self._resume()
            if state != RUN_WAITS:
                return state
        while True:
            while self.nready:
                self.nready -= 1
                state = self._start(self.ready[self.nready])
                if state != RUN_WAITS:
                    return state
            index = 0
            while index < self.nactive:
                state = self._collect(index)
                if state == RUN_FAILED:
                    return state
                index += state == RUN_WAITS  # else another has taken its place
            if not self.nready:
                if self.ndue:
                    return RUN_CALLS
                return RUN_WAITS if self.left or self.nactive else RUN_DONE

    cdef int _collect(self, int place) noexcept nogil:
        """Look at one message; RUN_DONE if it is over and gone from the list."""
        cdef Active active = self.active[place]
        cdef Op* op = &self.script.ops[active.op]
        cdef ucp_tag_recv_info_t info
        cdef ucs_status_t status
        cdef int state
        if active.what == AN_OFFER or (active.what == A_MESSAGE and op.kind == DO_RECV):
            status = ucp_tag_recv_request_test(active.handle, &info)
        else:
            status = ucp_request_check_status(active.handle)
        if status == UCS_INPROGRESS:
            return RUN_WAITS
        if status != UCS_OK:
            self._drop(place)
            self.failed, self.fault = active, status
            return RUN_FAILED
        self._drop(place)
        ucp_request_free(active.handle)
        if active.what == A_TRIFLE:
            return RUN_DONE
        if active.slot != NULL:
            active.slot.handle, active.slot.held = NULL, False
        if active.what == AN_OFFER and active.offered.answer == TAKEN:
            state = RUN_WAITS
            self.script.links[op.peer].has_seen = True
            if self.parts[active.op].done < op.nbytes:
                state = self._shelve(active.op)
            else:
                self._complete(active.op)
        elif active.what == AN_OFFER:
            self.script.links[op.peer].sees = False
            self.parts[active.op].done = 0
            state = self._post(active.op, FOLLOWS | active.offered.offer.number)
        elif op.kind == DO_RECV:
            state = self._arrived(active.op, info.length)
        else:
            state = RUN_WAITS
            self._complete(active.op)
        return RUN_FAILED if state == RUN_FAILED else RUN_DONE

    cdef void _drop(self, int place) noexcept nogil:
        """A message is not the run's any more."""
        self.nactive -= 1
        self.active[place] = self.active[self.nactive]

    cdef int _arrived(self, int index, size_t length) noexcept nogil:
        """A message has come, or what is left of one, or an offer in its place."""
        cdef Op* op = &self.script.ops[index]
        cdef Parts* parts = &self.parts[index]
        cdef Link* link = self.script.links[op.peer]
        cdef char* dst = self._place(op.buffer, op.offset + parts.done)
        cdef size_t rest = op.nbytes - parts.done
        cdef Offer offer
        cdef const char* src
        if length == rest:
            if parts.reduced:
                self._reduce(op, dst, parts.done, rest)
            return self._received(index)
        if not self.engine.takes_offers or not is_offer(dst, length):
            return self._wrong_length(index, parts.done + length)
        offer = (<Offer*>dst)[0]
        if offer.rest != rest or offer.nbytes > rest:
            if link.failed == UCS_OK:
                answer(link.ep, &offer, &TAKEN)
            return self._wrong_length(index, parts.done + offer.rest)
        if parts.done == 0:
            parts.number = offer.number
            parts.reduced = False
        src = see(&self.engine.views, &offer, link.pid)
        if src != NULL:
            if parts.done == 0:
                parts.reduced = op.taken_by >= 0 and self.waits[op.taken_by] == 1  # for this message
            if parts.reduced:
                self._reduce(op, src, parts.done, offer.nbytes)
            else:
                copy_over(dst, src, offer.nbytes)
            parts.done += offer.nbytes
            self.engine.taken += 1
        if link.failed == UCS_OK:
            answer(link.ep, &offer, &DECLINED if src == NULL else &TAKEN)
        return self._post(index, FOLLOWS | parts.number) if parts.done < op.nbytes else self._received(index)

    cdef int _received(self, int index) noexcept nogil:
        """All of a message is there, or has been reduced as it came."""
        cdef int reduction = self.script.ops[index].taken_by
        if self.parts[index].reduced:
            self.waits[reduction] += 1  # nobody starts it: it is done
        self._complete(index)
        if self.parts[index].reduced:
            self._started(reduction)
            self._complete(reduction)
        return RUN_WAITS

    cdef void _reduce(self, Op* recv, const void* message, size_t offset, size_t nbytes) noexcept nogil:
        """Do the reduction that takes a message, from where a part of the message lies."""
        cdef Op* op = &self.script.ops[recv.taken_by]
        cdef void* dst = self._place(op.buffer, op.offset + offset)
        cdef const void* src = self._place(op.other, op.other_offset + offset)
        cdef size_t count = nbytes // (recv.nbytes // op.count)
        if self._place(recv.buffer, recv.offset + offset) == dst:
            op.loop(dst, message, src, count, NULL)
        else:
            op.loop(dst, dst, message, count, NULL)

    cdef int _wrong_length(self, int index, size_t length) noexcept nogil:
        self.wrong_step, self.wrong_nbytes = index, length
        return RUN_FAILED

    cdef char* _place(self, int buffer, size_t offset) noexcept nogil:
        return <char*>self.buffers[buffer] + offset

    cdef int _start(self, int index) noexcept nogil:
        cdef Op* op = &self.script.ops[index]
        cdef void* dst = self._place(op.buffer, op.offset)
        cdef void* src = self._place(op.other, op.other_offset)
        cdef int state
        if op.kind == DO_CALL:
            self.due[self.ndue] = index
            self.ndue += 1
            return RUN_WAITS
        if self.times != NULL:
            self.times[index] = now()
        if op.kind == DO_COPY:
            memmove(dst, src, op.nbytes)
        elif op.kind == DO_LOOP:
            op.loop(dst, dst, src, op.count, <void*>self.factor if op.scales else <void*>op.value)
        elif op.nbytes or op.is_token:
            if op.kind == DO_SEND and op.nbytes >= LEAST_OFFERED and self.script.links[op.peer].sees:
                state = self._offer(index)
                if state == RUN_STALLS:
                    state = RUN_WAITS
                    if self.parts[index].done == 0:
                        return state  # no message may overtake it
            else:
                state = self._post(index, op.tag | self.tag)
            self._started(index)
            return state
        self._started(index)
        self._complete(index)
        return RUN_WAITS

    cdef int _post(self, int index, ucp_tag_t tag) noexcept nogil:
        """Send or receive the message of a step, or what is left of it."""
        cdef Op* op = &self.script.ops[index]
        cdef size_t done = self.parts[index].done
        cdef void* address = self._place(op.buffer, op.offset + done)
        cdef Link* link = self.script.links[op.peer]
        cdef ucp_request_param_t param
        cdef ucp_tag_recv_info_t info
        cdef void* handle
        param.op_attr_mask = UCP_OP_ATTR_FIELD_MEMORY_TYPE
        param.memory_type = UCS_MEMORY_TYPE_HOST
        if op.kind == DO_RECV:
            param.op_attr_mask |= UCP_OP_ATTR_FIELD_RECV_INFO
            param.tag_info = &info
            handle = ucp_tag_recv_nbx(self.engine.worker, address, op.nbytes - done, tag, <ucp_tag_t>-1, &param)
        elif link.failed != UCS_OK:  # what goes to a dead process on this machine would wait forever
            handle = <void*><ssize_t>link.failed
        else:
            handle = ucp_tag_send_nbx(link.ep, address, op.nbytes - done, tag, &param)
        if handle != NULL:
            return self._under_way(index, A_MESSAGE, handle, NULL, NULL)
        if op.kind == DO_RECV:
            return self._arrived(index, info.length)
        self._complete(index)
        return RUN_WAITS

    cdef int _offer(self, int index) noexcept nogil:
        """The same for a message to a process on this machine that is worth an offer."""
        cdef Op* op = &self.script.ops[index]
        cdef Link* link = self.script.links[op.peer]
        cdef Offer offer
        if link.failed == UCS_OK and offers(self._place(op.buffer, op.offset), op.nbytes, &offer) and not (
            op.is_fresh and op.nbytes <= MOST_SHELVED and is_far(&link.distance)
        ):
            if self.offered == NULL:
                self.offered = <Offered*>calloc(self.script.nops, sizeof(Offered))
            if self.offered == NULL:
                return self._post(index, op.tag | self.tag)
            self.offered[index].offer = offer
            return self._make_offer(index, &self.offered[index], NULL)
        if op.nbytes <= MOST_SHELVED or not self.script.takes_long:  # else this core has its own to receive meanwhile
            if op.nbytes <= self.engine.longest_shelved:
                return self._shelve(index)
        return self._post(index, op.tag | self.tag)

    cdef int _shelve(self, int index) noexcept nogil:
        """Copy a message to the shelf and offer it from there, a part at a time; RUN_STALLS if there is no room."""
        cdef Op* op = &self.script.ops[index]
        cdef Parts* parts = &self.parts[index]
        cdef Link* link = self.script.links[op.peer]
        cdef Slot* slot
        cdef size_t rest
        cdef int state = RUN_WAITS
        while parts.done < op.nbytes and state == RUN_WAITS:
            slot = self.engine.shelf.free(self.engine.worker) if link.failed == UCS_OK else NULL
            if slot == NULL and link.failed == UCS_OK and self.engine.shelf.is_full():
                if self.stalled_count == 0:
                    self.stalled_until = now() + STALL_SECONDS
                self.stalled[self.stalled_count] = index
                self.stalled_count += 1
                return RUN_STALLS
            rest = op.nbytes - parts.done
            if slot == NULL or not offers(slot.memory, part_of(rest), &slot.offered.offer):
                return self._post(index, self._next_tag(index))
            put_over(slot.memory, self._place(op.buffer, op.offset + parts.done), part_of(rest), &link.distance)
            slot.offered.offer.rest = rest
            slot.link = link
            state = self._make_offer(index, &slot.offered, slot)
            if slot.held:  # it is not known yet whether the receiver sees it
                break
        return state

    cdef int _resume(self) noexcept nogil:
        """Go on with what has waited for room on the shelf; without it, if it has waited for long."""
        cdef bint is_late = now() > self.stalled_until
        cdef int place, index, state, count = self.stalled_count
        cdef bint is_first
        if not is_late and self.engine.shelf.is_full():
            return RUN_WAITS
        self.stalled_count = 0
        for place in range(count):
            index = self.stalled[place]
            is_first = self.parts[index].done == 0
            state = self._post(index, self._next_tag(index)) if is_late else self._shelve(index)
            if state == RUN_FAILED:
                return state
            if is_first and (state != RUN_STALLS or self.parts[index].done):
                self._started(index)
        return RUN_WAITS

    cdef ucp_tag_t _next_tag(self, int index) noexcept nogil:
        """That of a message, or of what is left of it."""
        return FOLLOWS | self.parts[index].number if self.parts[index].done else self.script.ops[index].tag | self.tag

    cdef int _make_offer(self, int index, Offered* offered, Slot* slot) noexcept nogil:
        """Send an offer and wait for its answer; not if it is of a copy, and the receiver is known to take them."""
        cdef Op* op = &self.script.ops[index]
        cdef Parts* parts = &self.parts[index]
        cdef Link* link = self.script.links[op.peer]
        cdef ucp_tag_t tag = self._next_tag(index)
        cdef ucp_request_param_t param
        cdef void* handle
        param.op_attr_mask = 0
        handle = ucp_tag_recv_nbx(
            self.engine.worker, &offered.answer, 1, ANSWERS | offered.offer.number, <ucp_tag_t>-1, &param)
        if parts.done == 0:
            parts.number = offered.offer.number
        parts.done += offered.offer.nbytes
        if slot != NULL and not UCS_PTR_IS_ERR(handle):
            slot.handle, slot.held = handle, not link.has_seen
        if slot == NULL or not link.has_seen or UCS_PTR_IS_ERR(handle):
            if self._under_way(index, AN_OFFER, handle, offered, slot) == RUN_FAILED:
                return RUN_FAILED
        elif parts.done == op.nbytes:
            self._complete(index)
        handle = ucp_tag_send_nbx(link.ep, &offered.offer, sizeof(Offer), tag, &param)
        if handle == NULL:
            return RUN_WAITS
        if slot != NULL and not UCS_PTR_IS_ERR(handle):
            ucp_request_free(handle)  # the slot outlives it
            return RUN_WAITS
        return self._under_way(index, A_TRIFLE, handle, NULL, NULL)

    cdef int _under_way(self, int index, int what, void* handle, Offered* offered, Slot* slot) noexcept nogil:
        cdef Active* active = &self.active[self.nactive]
        active.op, active.what, active.handle, active.offered, active.slot = index, what, handle, offered, slot
        if UCS_PTR_IS_ERR(handle):
            self.failed, self.fault = active[0], UCS_PTR_STATUS(handle)
            return RUN_FAILED
        self.nactive += 1
        return RUN_WAITS

    cdef void _started(self, int index) noexcept nogil:
        cdef Op* op = &self.script.ops[index]
        cdef int place
        for place in range(op.first_start, op.first_start + op.nstarts):
            self._unlock(self.script.unlocks[place])

    cdef void _complete(self, int index) noexcept nogil:
        cdef Op* op = &self.script.ops[index]
        cdef int place
        self.left -= 1
        if self.times != NULL:
            self.times[self.script.nops + index] = now()
        for place in range(op.first_end, op.first_end + op.nends):
            self._unlock(self.script.unlocks[place])

    cdef void _unlock(self, int index) noexcept nogil:
        self.waits[index] -= 1
        if self.waits[index] == 0:
            self.ready[self.nready] = index
            self.nready += 1


cdef int _put(char* place, bytes value) except -1:
    """Copy the bytes of an element to where there is room for the widest."""
    memmove(place, <const char*>value, min(<size_t>len(value), <size_t>WIDEST))
    return 0


cdef Loop _loop(str dtype, str what, bint plain) except NULL:
    cdef Loop found = loop_for(dtype.encode(), what.encode(), plain)
    if found == NULL:
        raise ValueError(f"no elements of type {dtype!r} can do {what!r}")
    return found


def _run_loop(str dtype, str what, size_t dst, size_t other, size_t src, size_t count, bytes value, bint plain):
    """One local step on its own, for tests and measurements; `plain` chooses the loop of every processor."""
    cdef char[WIDEST] constant
    _put(constant, value)
    _loop(dtype, what, plain)(<void*>dst, <const void*>other, <const void*>src, count, constant)


cdef Script _script(Worker worker, list steps, object memory, object dtype):
    """See `Worker.script`."""
    cdef Script made = Script.__new__(Script)
    cdef Op* op
    cdef int index, place = 0
    kinds = {"send": DO_SEND, "recv": DO_RECV, "copy": DO_COPY, "call": DO_CALL}
    made.worker, made.memory, made.dtype = worker, memory, dtype
    made.nops = len(steps)
    made.ops = <Op*>calloc(made.nops + 1, sizeof(Op))
    total = sum([len(step["starts"]) + len(step["ends"]) for step in steps])
    made.unlocks = <int*>calloc(total + 1, sizeof(int))
    if made.ops == NULL or made.unlocks == NULL:
        raise MemoryError()
    for index, step in enumerate(steps):
        op = &made.ops[index]
        op.kind = kinds.get(step["do"], DO_LOOP)
        op.buffer, op.offset = step.get("at", (0, 0))
        op.other, op.other_offset = step.get("source", (0, 0))
        op.nbytes = step.get("nbytes", 0)
        op.tag = step.get("tag", 0)
        op.waits = step["waits"]
        op.taken_by = step.get("taken_by", -1)
        op.is_token = step.get("token", False)
        if op.kind == DO_SEND or op.kind == DO_RECV:
            peer = worker._peer(step["peer"])
            if peer not in made.peers:
                made.peers.append(peer)
            op.peer = made.peers.index(peer)
            made.takes_long |= op.kind == DO_RECV and op.nbytes > MOST_SHELVED
        elif op.kind == DO_CALL:
            made.calls[index] = step["call"]
        elif op.kind == DO_LOOP:
            op.loop = _loop(step["dtype"], step["do"], False)
            made.reduces = True
            op.count = step["count"]
            op.scales = step["do"] == "multiply"
            made.scales |= op.scales
            _put(op.value, step.get("value", b""))
        op.first_start = place
        op.nstarts = len(step["starts"])
        for each in step["starts"]:
            made.unlocks[place] = each
            place += 1
        op.first_end = place
        op.nends = len(step["ends"])
        for each in step["ends"]:
            made.unlocks[place] = each
            place += 1
    made.links = <Link**>calloc(len(made.peers) + 1, sizeof(void*))
    if made.links == NULL:
        raise MemoryError()
    for index in range(made.nops):  # results are what programs that reduce send out of anything but their input
        made.ops[index].is_fresh = made.reduces and made.ops[index].buffer != 0
    for index, peer in enumerate(made.peers):
        made.links[index] = &(<Peer>peer).link
    return made
