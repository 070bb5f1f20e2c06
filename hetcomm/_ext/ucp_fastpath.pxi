# The fast path: a call on NumPy arrays that has been made before, from its arguments to its end in C.
#
# It is taken when nothing else is under way in this process and no rank has said anything. A call that is not over
# after a while, that fails, during which a rank says something or another thread wants to use hetcomm, is handed over
# as it is to `hetcomm.works.engine`, which goes on with it: everything that can go wrong is dealt with there.

cdef enum:
    NOTHING = -1                 # in place of the number of an array
    NEITHER = -2
    HISTORY = 1024               # calls whose intents are remembered
    CACHED_CALLS = 256           # a power of two
    FEW_TURNS = 8                # of a wait in which the GIL is held, and in which nothing is yielded
    VENDOR_TURNS = 100           # polls of a vendor's operation before the first yield: as many as a raw call has
    LOOK_TURNS = 15              # a mask: idle turns between two looks at the clock and the mailbox
    RUNS_APART = 0xFF            # a mask: runs that tags tell apart,
    RUN_SHIFT = 13               # and where in them that number is

cdef double PATIENCE_SECONDS = 0.02  # after which a call is handed over
cdef double OTHERS_SECONDS = 0.001  # between two looks at what else this process moves: other ranks may need it
cdef Py_ssize_t APART = (<size_t>-1) >> 1  # between arrays that share no byte


@cython.final
cdef class Ledger:
    """What one rank of one communicator counts; its agreement, its engine and the fast path write into it.

    Attributes:
        next_call: The number that the next collective call will have.
        runs: Programs started.
        calls: Collective calls completed.
        sent: Bytes sent to other clusters by them.
        chain: What all ranks that have begun the same calls in the same order have in common.
        alarm: Whether another rank has said something that must be looked at before the next call.
        is_slow: Whether the fast path may not be taken: the communicator is unusable, calls are being grouped, or
            another thread moves them too.
        is_traced: Whether steps are being recorded.
    """

    cdef public long long next_call, runs, calls, sent
    cdef public unsigned int chain
    cdef public bint alarm, is_slow, is_traced
    cdef list _intents

    def __cinit__(self):
        self._intents = [None] * HISTORY

    def count(self, object intent):
        """Count the next call, which means `intent`; None: it was refused here."""
        self._count(intent)

    cdef inline void _count(self, object intent) noexcept:
        self._intents[self.next_call & (HISTORY - 1)] = intent
        self.next_call += 1

    def begin(self, unsigned int plan):
        """A call of the plan with that number begins; the check bits of its messages.

        Calls of different plans after the same calls have different bits, for certain; and so have equal calls after
        different ones.
        """
        return self._begin(plan)

    cdef inline unsigned int _begin(self, unsigned int plan) noexcept:
        self.chain = (self.chain * 0x1235 + plan) & <unsigned int>CHECK
        return self.chain

    def intent_of(self, long long call):
        """What a call meant; None if it was refused here, is forgotten, or has yet to be made."""
        if not self.next_call - HISTORY <= call < self.next_call or call < 0:
            return None
        return self._intents[call & (HISTORY - 1)]


cdef struct Key:
    long long kind
    PyObject* first         # what is passed beside the arrays: an op, a root, a count; equal if identical
    PyObject* second
    PyObject* type_a        # dtype of an array; NULL: none was passed
    PyObject* type_b
    Py_ssize_t count_a
    Py_ssize_t count_b
    Py_ssize_t between      # bytes from one to the other where they overlap, or APART
    long long writeable


@cython.final
cdef class CachedCall:
    """A call that is known: what its arguments look like, and what it runs."""

    cdef Key key
    cdef tuple owners            # of what the key points to
    cdef object plan, intent
    cdef unsigned int number     # of the plan, which the ranks agree on
    cdef int source, target      # which array is the program's input, and output
    cdef Script script
    cdef size_t scratch_nbytes
    cdef long long sent


cdef struct Pair:
    char* addresses[2]
    Py_ssize_t counts[2]


@cython.final
cdef class FastPath:
    """The fast path of one rank of one communicator.

    Args:
        ledger: That of the communicator.
        quiet: Lists that are empty as long as it may be taken; the first is of all that this process moves.
        gate: That of the process.
        array_type: `numpy.ndarray`.
        fixed: Types of arguments whose objects never change; exactly these are compared by identity.
        borrow: Gives scratch memory of at least so many bytes.
        take_over: `Engine.take_over`.

    Attributes:
        incoming: The receive of the next control message, or None.
    """

    cdef Ledger ledger
    cdef tuple quiet
    cdef Gate gate
    cdef object array_type, borrow, take_over
    cdef set fixed
    cdef public Request incoming
    cdef list cached
    cdef object scratch
    cdef size_t scratch_address, scratch_nbytes
    cdef object last_dtype, failure
    cdef Py_ssize_t last_size

    def __init__(self, Ledger ledger not None, tuple quiet, Gate gate not None, object array_type, set fixed,
                 object borrow, object take_over):
        self.ledger = ledger
        self.quiet = quiet
        self.gate = gate
        self.array_type = array_type
        self.fixed = fixed
        self.borrow = borrow
        self.take_over = take_over
        self.cached = [None] * CACHED_CALLS

    # ---- what is known

    def learn(self, object plan, unsigned int number, int kind, object a, object b, object first, object second,
              object in_memory, object out_memory):
        """Remember a call that has gone well, so that the next one like it may take this path.

        Args:
            plan: What it runs, as a script of the transport.
            number: That of the plan, which the ranks have agreed on.
            kind, a, b, first, second: As for `call`.
            in_memory, out_memory: The program's input and output, each the memory of an array or None.
        """
        known = self._cached_call(plan, number, kind, a, b, first, second, in_memory, out_memory)
        if known is not None:
            self.cached[_place(&(<CachedCall>known).key)] = known

    def pin(self, object plan, unsigned int number, object in_memory, object out_memory):
        """The same for a persistent call on these memories; None if it cannot take this path."""
        cdef PinnedCall made = PinnedCall.__new__(PinnedCall)
        arrays = [None if memory is None else memory.owner for memory in (in_memory, out_memory)]
        known = self._cached_call(plan, number, 0, arrays[0], arrays[1], None, None, in_memory, out_memory)
        if known is None:
            return None
        made.path, made.known, made.a, made.b = self, known, arrays[0], arrays[1]
        self._read(&(<CachedCall>known).key, &made.pair, 0, made.a, made.b, None, None)
        return made

    cdef object _cached_call(self, object plan, unsigned int number, int kind, object a, object b, object first,
                             object second, object in_memory, object out_memory):
        cdef CachedCall known = CachedCall.__new__(CachedCall)
        cdef Pair pair
        if not self._read(&known.key, &pair, kind, a, b, first, second):
            return None
        known.source, known.target = _which(&pair, in_memory), _which(&pair, out_memory)
        if known.source == NEITHER or known.target == NEITHER:
            return None
        known.plan, known.intent, known.number, known.sent = plan, plan.intent, number, plan.sent
        known.script, known.scratch_nbytes = <Script?>plan.bound.script, plan.bound.scratch_nbytes
        if known.script.scales:
            return None
        known.owners = first, second, None if a is None else a.dtype, None if b is None else b.dtype
        return known

    def forget(self):
        """Forget all calls: they mean something else from now on."""
        self.cached = [None] * CACHED_CALLS

    cdef bint _read(self, Key* key, Pair* pair, int kind, object a, object b, object first, object second) except -1:
        """What the arguments look like; False if they are not what this path is for."""
        cdef char* start_a
        cdef char* start_b
        memset(key, 0, sizeof(Key))
        memset(pair, 0, sizeof(Pair))
        if not self._array(a, &pair.addresses[0], &pair.counts[0], &key.type_a, key):
            return False
        key.writeable <<= 1
        if not self._array(b, &pair.addresses[1], &pair.counts[1], &key.type_b, key):
            return False
        if not self._is_fixed(first) or not self._is_fixed(second):
            return False
        key.kind, key.first, key.second = kind, <PyObject*>first, <PyObject*>second
        key.count_a, key.count_b = pair.counts[0], pair.counts[1]
        key.between = APART
        if key.type_a != NULL and key.type_b != NULL:
            start_a, start_b = pair.addresses[0], pair.addresses[1]
            if start_a == start_b or (
                start_a < start_b + pair.counts[1] * self._size(key.type_b)
                and start_b < start_a + pair.counts[0] * self._size(key.type_a)
            ):
                key.between = start_b - start_a
        return True

    cdef inline bint _is_fixed(self, object argument) except -1:
        """Whether an argument cannot change: what its identity stands for today, it stands for tomorrow."""
        return argument is None or type(argument) is str or type(argument) is int or type(argument) in self.fixed

    cdef inline bint _array(self, object array, char** address, Py_ssize_t* count, PyObject** dtype, Key* key) noexcept:
        """Where an array is and what it looks like; False if it is neither None nor a contiguous NumPy array."""
        cdef numpy.ndarray known
        cdef int axis
        if array is None:
            return True
        if type(array) is not self.array_type:
            return False
        known = <numpy.ndarray>array
        if not numpy.PyArray_IS_C_CONTIGUOUS(known):
            return False
        count[0] = 1
        for axis in range(numpy.PyArray_NDIM(known)):
            count[0] *= numpy.PyArray_DIMS(known)[axis]
        address[0] = <char*>numpy.PyArray_DATA(known)
        dtype[0] = <PyObject*>numpy.PyArray_DESCR(known)
        key.writeable |= numpy.PyArray_FLAGS(known) & numpy.NPY_ARRAY_WRITEABLE
        return True

    cdef inline Py_ssize_t _size(self, PyObject* dtype) except -1:
        """Bytes of an element."""
        if <PyObject*>self.last_dtype != dtype:
            self.last_dtype = <object>dtype
            self.last_size = self.last_dtype.itemsize
        return self.last_size

    cdef inline bint _may(self, CachedCall known) except -1:
        """Whether nothing is under way, nothing has been said, and nobody else is at it."""
        cdef Ledger ledger = self.ledger
        cdef Worker worker = known.script.worker
        if ledger.is_slow or ledger.alarm or ledger.is_traced or self.gate.depth or worker._busy:
            return False
        for each in self.quiet:
            if (<list>each):
                return False
        return not self._spoken()

    cdef inline bint _spoken(self) noexcept nogil:
        """Whether a control message has come."""
        return self.incoming is not None and (
            self.incoming.handle == NULL or ucp_request_check_status(self.incoming.handle) != UCS_INPROGRESS)

    # ---- calls

    def call(self, int kind, object a, object b, object first, object second):
        """Make a blocking call; False if this path cannot be taken: nothing has been done then.

        Args:
            kind: A number that stands for the method.
            a, b: Its arrays.
            first, second: What else it is passed, or None; calls are equal if these are identical.

        Raises:
            HetcommError: As the call would by the other way.
        """
        cdef Key key
        cdef Pair pair
        cdef CachedCall known
        cdef Run run
        if not self._read(&key, &pair, kind, a, b, first, second):
            return False
        found = self.cached[_place(&key)]
        if found is None:
            return False
        known = <CachedCall>found
        if memcmp(&key, &known.key, sizeof(Key)) != 0 or not self._may(known):
            return False
        self.gate._take()
        try:
            run = self._begin(known, &pair)
            if not self._complete(known, run):
                self._hand_over(known, run, &pair, a, b, True)
        finally:
            self.gate.depth -= 1
        return True

    cdef Run _begin(self, CachedCall known, Pair* pair):
        """Start a run; nothing of it has been moved. The worker is this thread's from now on."""
        cdef Ledger ledger = self.ledger
        cdef Run run
        if known.scratch_nbytes > self.scratch_nbytes:
            self.scratch = self.borrow(known.scratch_nbytes)
            self.scratch_address, self.scratch_nbytes = self.scratch.address, self.scratch.nbytes
        run = known.script._start(
            <size_t>pair.addresses[known.source] if known.source >= 0 else 0,
            <size_t>pair.addresses[known.target] if known.target >= 0 else 0,
            self.scratch_address,
            0,
        )
        known.script.worker._enter()  # last: what may fail must not leave the worker taken
        run.call, run.number = ledger.next_call, ledger.runs
        run.check = ledger._begin(known.number)
        run.tag = (run.number & RUNS_APART) << RUN_SHIFT | run.check
        ledger._count(known.intent)
        ledger.runs += 1
        return run

    cdef inline int _end(self, CachedCall known, Run run) except -1:
        self.ledger.calls += 1
        self.ledger.sent += known.sent
        run._release()
        return 0

    cdef bint _complete(self, CachedCall known, Run run) except -1:
        """Move a run until it is over; False if it is to be handed over, for which `failure` may have a reason."""
        cdef int state = RUN_FAILED
        try:
            state = self._wait(run)
        except BaseException as error:  # goes on to the caller when the engine knows of it
            self.failure = error
        run.script.worker._busy = False
        if state != RUN_DONE:
            return False
        self._end(known, run)
        return True

    cdef int _wait(self, Run run) except -1:
        """Move a run until it is over, or is to be handed over."""
        cdef int turn, state = RUN_WAITS
        for turn in range(FEW_TURNS):
            state = run._advance()
            if state != RUN_WAITS or run.calling:
                break
            ucp_worker_progress(run.engine.worker)
        while True:
            if state == RUN_CALLS or (state == RUN_WAITS and run.calling):
                state = self._wait_for_vendors(run)
                if run.calling or state != RUN_WAITS:
                    return state
            elif state == RUN_WAITS:
                with nogil:
                    state = self._wait_for_messages(run)
                if state != RUN_CALLS:
                    return state
            else:
                return state

    cdef int _wait_for_messages(self, Run run) noexcept nogil:
        cdef double end = 0, look = 0, time
        cdef unsigned int idle = 0
        cdef int state
        while True:
            state = run._advance()
            if state != RUN_WAITS:
                return state
            if ucp_worker_progress(run.engine.worker) != 0:
                idle = 0
                continue
            idle += 1
            if run.failures != run.engine.failures:
                state = run._look_at_peers()
                if state != RUN_WAITS:
                    return state
            if idle & LOOK_TURNS == 0:
                if self._spoken() or self.gate.wanted:
                    return RUN_WAITS
                time = now()
                if end == 0:
                    end, look = time + PATIENCE_SECONDS, time + OTHERS_SECONDS
                elif time > end:
                    return RUN_WAITS
                elif time > look:
                    look = time + OTHERS_SECONDS
                    if not self._move_others(run.script.worker):
                        return RUN_WAITS
            if idle > FEW_TURNS:  # ranks may outnumber the cores
                sched_yield()

    cdef int _wait_for_vendors(self, Run run) except -1:
        """Start and poll vendor calls until the run is over, or none of them is left: then `calling` is empty."""
        cdef Worker worker = run.script.worker
        cdef double end = 0, look = 0, time
        cdef unsigned int turn = 0
        cdef int state
        while True:
            worker._busy = False  # a signal handler may run in what a vendor does
            if run.ndue:
                run.start_calls()
            if run._poll_calls():
                turn = 0
            worker._busy = True
            state = run._advance()
            if state == RUN_CALLS:
                continue
            if state != RUN_WAITS or not run.calling:
                return state
            ucp_worker_progress(run.engine.worker)
            turn += 1
            if run.failures != run.engine.failures:
                state = run._look_at_peers()
                if state != RUN_WAITS:
                    return state
            if turn & LOOK_TURNS == 0:
                if self._spoken() or self.gate.wanted:
                    return RUN_WAITS
                time = now()
                if end == 0:
                    end, look = time + PATIENCE_SECONDS, time + OTHERS_SECONDS
                elif time > end:
                    return RUN_WAITS
                elif time > look:
                    look = time + OTHERS_SECONDS
                    if not self._move_others(worker):
                        return RUN_WAITS
            if turn > VENDOR_TURNS:
                with nogil:
                    sched_yield()

    cdef bint _move_others(self, Worker worker) noexcept nogil:
        """Move what else this process has; False if the communicator is not usable after it, or it failed."""
        with gil:
            worker._busy = False  # whoever fails has something to tell
            try:
                if worker._engine.companion is not None:
                    worker._engine.companion()
            except BaseException as error:  # goes on to the caller when the engine knows of it
                self.failure = error
            worker._busy = True
            return self.failure is None and not self.ledger.is_slow

    cdef object _hand_over(self, CachedCall known, Run run, Pair* pair, object a, object b, bint wait):
        """Let the engine go on with a run; its work."""
        cdef int source = known.source, target = known.target
        scratch = None
        failure, self.failure = self.failure, None
        if known.scratch_nbytes:
            scratch, self.scratch = self.scratch, None
            self.scratch_address = self.scratch_nbytes = 0
        arrays = a, b
        return self.take_over(
            known.plan,
            None if source < 0 else (<size_t>pair.addresses[source], pair.counts[source], arrays[source]),
            None if target < 0 else (<size_t>pair.addresses[target], pair.counts[target], arrays[target]),
            run,
            scratch,
            failure,
            wait,
        )

    def settle(self):
        """Hand over the persistent calls under way."""
        for each in list(self.quiet[0]):
            if type(each) is PinnedCall and (<PinnedCall>each).path is self:
                (<PinnedCall>each).advance()


@cython.final
cdef class PinnedCall:
    """A persistent call: while one of its runs is under way it is among the movers of the pump.

    Attributes:
        work: What it has become when it was handed over.
    """

    cdef FastPath path
    cdef CachedCall known
    cdef Pair pair
    cdef object a, b
    cdef Run run
    cdef bint finished       # and nobody has waited for it
    cdef readonly object work

    def __init__(self):
        raise TypeError("a PinnedCall is made by FastPath.pin")

    @property
    def busy(self):
        """Whether it was started and has not been waited for."""
        return self.run is not None or self.finished or self.work is not None

    def start(self):
        """Start a run; False if this path cannot be taken: nothing has been done then."""
        cdef FastPath path = self.path
        cdef Run run
        cdef int state = RUN_FAILED
        if self.run is not None or self.finished or self.work is not None or not path._may(self.known):
            return False
        path.gate._take()
        try:
            (<list>path.quiet[0]).append(self)
            try:
                run = path._begin(self.known, &self.pair)
            except BaseException:
                (<list>path.quiet[0]).remove(self)
                raise
            self.run = run
            state = run._advance()
            run.script.worker._busy = False
            if state == RUN_CALLS:
                try:
                    run.start_calls()
                except BaseException as error:  # goes on to the caller when the engine knows of it
                    path.failure, state = error, RUN_FAILED
            if state == RUN_FAILED:
                self.advance()
        finally:
            path.gate.depth -= 1
        return True

    def wait(self):
        """Wait until the run is over; False if it is a work's."""
        cdef Run run = self.run
        cdef bint is_over = False
        if run is None:
            self.finished = False
            return self.work is None
        if self._alone():
            self.path.gate._take()
            try:
                run.script.worker._enter()
                is_over = self.path._complete(self.known, run)
                if is_over:
                    self._leave()
            finally:
                self.path.gate.depth -= 1
        if not is_over:
            self.advance()
        return is_over

    cdef bint _alone(self) except -1:
        """Whether nothing else is to be moved."""
        cdef FastPath path = self.path
        return (len(<list>path.quiet[0]) == 1 and not path.ledger.is_slow and not path.gate.depth
                and not self.known.script.worker._busy)

    def advance(self):
        """Hand the run over to the engine: something else is to be moved beside it."""
        self._give_up(None)

    cdef int _give_up(self, object failure) except -1:
        cdef Run run = self.run
        if run is not None:
            self._leave()
            self.work = self.path._hand_over(self.known, run, &self.pair, self.a, self.b, False)

    def events(self):
        """What it waits for on a device: nothing."""
        return ()

    def test(self):
        """Move it a little; whether it is over. It never is if something else is to be moved too."""
        cdef Run run = self.run
        cdef int state
        failure = None
        if self.finished:
            return True
        if run is None or run.calling or not self._alone():
            return False
        run.script.worker._enter()
        try:
            ucp_worker_progress(run.engine.worker)
            state = run._advance()
        except Exception as error:
            state, failure = RUN_FAILED, error
        finally:
            run.script.worker._busy = False
        if state == RUN_FAILED:
            self._give_up(failure)
        if state != RUN_DONE:
            return False
        self._leave()
        self.path._end(self.known, run)
        self.finished = True
        return True

    def release(self):
        """The work that it has become, now at the latest; it may be started again when that is over."""
        self.advance()
        self.finished = False
        work, self.work = self.work, None
        return work

    cdef int _leave(self) except -1:
        self.run = None
        (<list>self.path.quiet[0]).remove(self)
        return 0


cdef int _which(Pair* pair, object memory) except -3:
    """Which of the arrays a memory is."""
    cdef int number
    if memory is None:
        return NOTHING
    for number in range(2):
        if <size_t>pair.addresses[number] == memory.address and pair.counts[number] == memory.count:
            return number
    return NEITHER


cdef inline size_t _place(Key* key) noexcept:
    """Where among the cached calls a call is, if it is known."""
    cdef uint64_t* words = <uint64_t*>key
    cdef uint64_t mixed = 0
    cdef size_t index
    for index in range(sizeof(Key) // sizeof(uint64_t)):
        mixed = (mixed ^ words[index]) * <uint64_t>0x9E3779B97F4A7C15
        mixed ^= mixed >> 29
    return mixed & (CACHED_CALLS - 1)
