# The express way: a blocking call on NumPy arrays that has been made before, from its arguments to its end in C.
#
# It is taken when nothing else is under way and no rank has said anything. A call that is not over after a while, that
# fails, or during which a rank says something, is handed over as it is to `hetcomm.runtime.engine`, which goes on with
# it: everything that can go wrong is dealt with there.

cdef enum:
    NOTHING = -1                 # in place of the number of an array
    NEITHER = -2
    HISTORY = 1024               # calls whose intents are remembered
    LESSONS = 256                # calls that are known: a power of two
    FEW_TURNS = 8                # of a wait in which the GIL is held, and in which nothing is yielded
    VENDOR_TURNS = 100           # polls of a vendor's operation before the first yield: as many as a raw call has
    LOOK_TURNS = 15              # a mask: idle turns between two looks at the clock and the mailbox

cdef double PATIENCE_SECONDS = 0.02  # after which a call is handed over
cdef double VENDOR_SECONDS = 0.001  # between two looks at the vendors, which others may need to be moved
cdef Py_ssize_t APART = (<size_t>-1) >> 1  # between arrays that share no byte


@cython.final
cdef class Ledger:
    """What one rank of one communicator counts; its agreement, its engine and the express way write into it.

    Attributes:
        next_call: The number that the next collective call will have.
        runs: Programs started.
        weight: Numbers of runs used up: those, and runs inside of vendors.
        calls: Collective calls completed.
        sent: Bytes sent to other clusters by them.
        alarm: Whether another rank has said something that must be looked at before the next call.
        detour: Whether no short way may be taken: the communicator is unusable, calls are being grouped, or another
            thread moves them too.
        traced: Whether steps are being recorded.
    """

    cdef public long long next_call, runs, weight, calls, sent
    cdef public bint alarm, detour, traced
    cdef list _intents

    def __cinit__(self):
        self._intents = [None] * HISTORY

    def count(self, object intent):
        """Count the next call, which means `intent`; None: it was refused here."""
        self._count(intent)

    cdef inline void _count(self, object intent) noexcept:
        self._intents[self.next_call & (HISTORY - 1)] = intent
        self.next_call += 1

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
cdef class Lesson:
    """A call that is known: what its arguments look like, and what it runs."""

    cdef Key key
    cdef tuple owners            # of what the key points to
    cdef object plan, intent
    cdef int source, target      # which array is the program's input, and output
    cdef Script script
    cdef size_t scratch_nbytes
    cdef long long sent
    cdef object start            # of the vendor's communicator, where the program is nothing but its call
    cdef object collective, dtype
    cdef list memories           # those of the last vendor call, which own nothing


cdef struct Pair:
    char* addresses[2]
    Py_ssize_t counts[2]


@cython.final
cdef class Express:
    """The express way of one rank of one communicator.

    Args:
        ledger: That of the communicator.
        quiet: Lists that are empty as long as it may be taken.
        array_type: `numpy.ndarray`.
        memory: `hetcomm.types.Memory`.
        borrow: Gives scratch memory of at least so many bytes.
        take_over: `Engine.take_over`.

    Attributes:
        incoming: The receive of the next control message, or None.
    """

    cdef Ledger ledger
    cdef tuple quiet
    cdef object array_type, memory, borrow, take_over
    cdef public Request incoming
    cdef list lessons
    cdef object scratch
    cdef size_t scratch_address, scratch_nbytes
    cdef object last_dtype, interruption
    cdef Py_ssize_t last_size

    def __init__(self, Ledger ledger not None, tuple quiet, object array_type, object memory, object borrow,
                 object take_over):
        self.ledger = ledger
        self.quiet = quiet
        self.array_type = array_type
        self.memory = memory
        self.borrow = borrow
        self.take_over = take_over
        self.lessons = [None] * LESSONS

    # ---- what is known

    def learn(self, object plan, int kind, object a, object b, object first, object second, object in_memory,
              object out_memory):
        """Remember a call that has gone well, so that the next one like it may take this way.

        Args:
            plan: What it runs: a script of the transport, or nothing but a vendor's call.
            kind, a, b, first, second: As for `call`.
            in_memory, out_memory: The program's input and output, each the memory of an array or None.
        """
        lesson = self._lesson(plan, kind, a, b, first, second, in_memory, out_memory)
        if lesson is not None:
            self.lessons[_place(&(<Lesson>lesson).key)] = lesson

    def stand(self, object plan, object in_memory, object out_memory):
        """The same for a persistent call on these memories; None if it cannot take this way."""
        cdef Standing made = Standing.__new__(Standing)
        arrays = [None if memory is None else memory.owner for memory in (in_memory, out_memory)]
        lesson = self._lesson(plan, 0, arrays[0], arrays[1], None, None, in_memory, out_memory)
        if lesson is None or (<Lesson>lesson).script is None:
            return None
        made.express, made.lesson, made.a, made.b = self, lesson, arrays[0], arrays[1]
        self._read(&(<Lesson>lesson).key, &made.pair, 0, made.a, made.b, None, None)
        return made

    cdef object _lesson(self, object plan, int kind, object a, object b, object first, object second, object in_memory,
                        object out_memory):
        cdef Lesson lesson = Lesson.__new__(Lesson)
        cdef Pair pair
        if not self._read(&lesson.key, &pair, kind, a, b, first, second):
            return None
        lesson.source, lesson.target = _which(&pair, in_memory), _which(&pair, out_memory)
        if lesson.source == NEITHER or lesson.target == NEITHER:
            return None
        bound = plan.bound
        lesson.plan, lesson.intent, lesson.sent = plan, plan.intent, plan.sent
        if plan.direct is not None:
            lesson.start = plan.direct.start
            lesson.collective, lesson.dtype = plan.collective, bound.dtype
            lesson.memories = [None, None]
        elif bound.script is not None and not (<Script?>bound.script).scales:
            lesson.script, lesson.scratch_nbytes = bound.script, bound.scratch_nbytes
        else:
            return None
        lesson.owners = first, second, None if a is None else a.dtype, None if b is None else b.dtype
        return lesson

    def forget(self):
        """Forget all calls: they mean something else from now on."""
        self.lessons = [None] * LESSONS

    cdef bint _read(self, Key* key, Pair* pair, int kind, object a, object b, object first, object second) except -1:
        """What the arguments look like; False if they are not what this way is for."""
        cdef char* start_a
        cdef char* start_b
        memset(key, 0, sizeof(Key))
        memset(pair, 0, sizeof(Pair))
        if not self._array(a, &pair.addresses[0], &pair.counts[0], &key.type_a, key):
            return False
        key.writeable <<= 1
        if not self._array(b, &pair.addresses[1], &pair.counts[1], &key.type_b, key):
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

    cdef inline Py_ssize_t _size(self, PyObject* dtype):
        """Bytes of an element."""
        if <PyObject*>self.last_dtype != dtype:
            self.last_dtype = <object>dtype
            self.last_size = self.last_dtype.itemsize
        return self.last_size

    cdef inline bint _may(self) except -1:
        """Whether nothing is under way, and nothing has been said."""
        cdef Ledger ledger = self.ledger
        if ledger.detour or ledger.alarm or ledger.traced:
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
        """Make a blocking call; False if this way cannot be taken: nothing has been done then.

        Args:
            kind: A number that stands for the method.
            a, b: Its arrays.
            first, second: What else it is passed, or None; calls are equal if these are identical.

        Raises:
            HetcommError: As the call would by the other way.
        """
        cdef Key key
        cdef Pair pair
        cdef Lesson lesson
        cdef Run run
        cdef int state
        if not self._read(&key, &pair, kind, a, b, first, second):
            return False
        found = self.lessons[_place(&key)]
        if found is None:
            return False
        lesson = <Lesson>found
        if memcmp(&key, &lesson.key, sizeof(Key)) != 0 or not self._may():
            return False
        if lesson.script is None:
            return self._call_vendor(lesson, &pair, a, b)
        run = self._begin(lesson, &pair)
        failure = None
        try:
            state = self._wait(run)
        except Exception as error:
            state, failure = RUN_FAILED, error
        finally:
            run.script.worker._busy = False
        if state == RUN_DONE:
            self._end(lesson, run)
        else:
            self._hand_over(lesson, run, &pair, a, b, failure, True)
        return True

    cdef Run _begin(self, Lesson lesson, Pair* pair):
        """Start a run; nothing of it has been moved. The worker is this thread's from now on."""
        cdef Ledger ledger = self.ledger
        cdef Run run
        if lesson.scratch_nbytes > self.scratch_nbytes:
            self.scratch = self.borrow(lesson.scratch_nbytes)
            self.scratch_address, self.scratch_nbytes = self.scratch.address, self.scratch.nbytes
        run = lesson.script._start(
            <size_t>pair.addresses[lesson.source] if lesson.source >= 0 else 0,
            <size_t>pair.addresses[lesson.target] if lesson.target >= 0 else 0,
            self.scratch_address,
            (ledger.runs & 0xFFFF) << 8,
        )
        lesson.script.worker._enter()  # last: what may fail must not leave the worker taken
        ledger._count(lesson.intent)
        ledger.runs += 1
        ledger.weight += 1
        return run

    cdef inline int _end(self, Lesson lesson, Run run) except -1:
        self.ledger.calls += 1
        self.ledger.sent += lesson.sent
        run.script.spare.append(run)
        return 0

    cdef int _wait(self, Run run) except -1:
        """Move a run until it is over, or is to be handed over."""
        cdef int turn, state = RUN_WAITS
        for turn in range(FEW_TURNS):
            state = run._advance()
            if state != RUN_WAITS:
                return state
            ucp_worker_progress(run.engine.worker)
        with nogil:
            state = self._wait_long(run)
        return state

    cdef int _wait_long(self, Run run) except -1 nogil:
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
                if self._spoken():
                    return RUN_WAITS
                time = now()
                if end == 0:
                    end, look = time + PATIENCE_SECONDS, time + VENDOR_SECONDS
                elif time > end:
                    return RUN_WAITS
                elif time > look:
                    look = time + VENDOR_SECONDS
                    if not self._move_vendors(run.script.worker):
                        return RUN_WAITS
            if idle > FEW_TURNS:  # ranks may outnumber the cores
                sched_yield()

    cdef bint _move_vendors(self, Worker worker) noexcept nogil:
        """Move the vendors; False if the communicator is not usable after it."""
        with gil:
            worker._busy = False  # whoever fails has something to tell
            try:
                if worker._engine.companion is not None:
                    worker._engine.companion()
            except BaseException as error:  # a signal handler's, on its way to the caller
                self.interruption = error
            worker._busy = True
        return self.interruption is None and not self.ledger.detour

    cdef object _hand_over(self, Lesson lesson, object run, Pair* pair, object a, object b, object error, bint wait):
        """Let the engine go on with a run, or a vendor's operation; its work."""
        cdef int source = lesson.source, target = lesson.target
        scratch = None
        error, self.interruption = error or self.interruption, None
        if lesson.script is not None and lesson.scratch_nbytes:
            scratch, self.scratch = self.scratch, None
            self.scratch_address = self.scratch_nbytes = 0
        arrays = a, b
        return self.take_over(
            lesson.plan,
            None if source < 0 else (<size_t>pair.addresses[source], pair.counts[source], arrays[source]),
            None if target < 0 else (<size_t>pair.addresses[target], pair.counts[target], arrays[target]),
            run,
            scratch,
            error,
            wait,
        )

    def settle(self):
        """Hand over the persistent calls under way."""
        for each in list(self.quiet[0]):
            if type(each) is Standing and (<Standing>each).express is self:
                (<Standing>each).advance()

    cdef bint _call_vendor(self, Lesson lesson, Pair* pair, object a, object b) except -1:
        """The same for a call that is nothing but a vendor's."""
        cdef Ledger ledger = self.ledger
        ledger._count(lesson.intent)
        ledger.runs += 1
        ledger.weight += 1
        operation = failure = None
        try:
            source = self._memory(lesson, 0, pair, lesson.source)
            operation = lesson.start(lesson.collective, source, self._memory(lesson, 1, pair, lesson.target))
            over = self._poll_vendor(operation.test)
        except Exception as error:
            over, failure = False, error
        if not over:  # outside of the try: what the engine raises is the end of the call
            self._hand_over(lesson, operation, pair, a, b, failure, True)
            return True
        ledger.calls += 1
        ledger.sent += lesson.sent
        return True

    cdef bint _poll_vendor(self, object test) except -1:
        """Ask a vendor's operation until it is over; False if that takes long."""
        cdef unsigned int turn = 0
        cdef double end = 0, time
        while not test():
            turn += 1
            if turn & LOOK_TURNS == 0:
                time = now()
                if end == 0:
                    end = time + PATIENCE_SECONDS
                elif time > end:
                    return False
            if turn > VENDOR_TURNS:
                with nogil:
                    sched_yield()
        return True

    cdef object _memory(self, Lesson lesson, int place, Pair* pair, int which):
        """Memory as a vendor takes it, without an owner: the call has that; that of the call before if it is equal."""
        if which < 0:
            return None
        memory = lesson.memories[place]
        if memory is None or memory.address != <size_t>pair.addresses[which]:
            memory = self.memory(<size_t>pair.addresses[which], pair.counts[which], lesson.dtype)
            lesson.memories[place] = memory
        return memory


@cython.final
cdef class Standing:
    """A persistent call: while one of its runs is under way it is among the movers of the pump.

    Attributes:
        work: What it has become when it was handed over.
    """

    cdef Express express
    cdef Lesson lesson
    cdef Pair pair
    cdef object a, b
    cdef Run run
    cdef bint finished       # and nobody has waited for it
    cdef readonly object work

    def __init__(self):
        raise TypeError("a Standing is made by Express.stand")

    @property
    def busy(self):
        """Whether it was started and has not been waited for."""
        return self.run is not None or self.finished or self.work is not None

    def start(self):
        """Start a run; False if this way cannot be taken: nothing has been done then."""
        cdef Express express = self.express
        cdef Run run
        cdef int state
        if self.run is not None or self.finished or self.work is not None or not express._may():
            return False
        (<list>express.quiet[0]).append(self)
        try:
            run = self.run = express._begin(self.lesson, &self.pair)
        except BaseException:
            (<list>express.quiet[0]).remove(self)
            raise
        failure = None
        try:
            state = run._advance()
        except Exception as error:
            state, failure = RUN_FAILED, error
        finally:
            run.script.worker._busy = False
        if state == RUN_FAILED:
            self._give_up(failure)
        return True

    def wait(self):
        """Wait until the run is over; False if it is a work's."""
        cdef Run run = self.run
        cdef int state = RUN_WAITS
        failure = None
        if run is None:
            self.finished = False
            return self.work is None
        if len(<list>self.express.quiet[0]) == 1 and not self.express.ledger.detour:
            run.script.worker._enter()
            try:
                state = self.express._wait(run)
            except Exception as error:
                state, failure = RUN_FAILED, error
            finally:
                run.script.worker._busy = False
        if state != RUN_DONE:
            self._give_up(failure)
            return False
        self._leave()
        self.express._end(self.lesson, run)
        return True

    def advance(self):
        """Hand the run over to the engine: something else is to be moved beside it."""
        self._give_up(None)

    cdef int _give_up(self, object failure) except -1:
        cdef Run run = self.run
        if run is not None:
            self._leave()
            self.work = self.express._hand_over(self.lesson, run, &self.pair, self.a, self.b, failure, False)
        return 0

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
        if run is None or len(<list>self.express.quiet[0]) != 1 or self.express.ledger.detour:
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
        self.express._end(self.lesson, run)
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
        (<list>self.express.quiet[0]).remove(self)
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
    """Where among the lessons a call is, if it is known."""
    cdef uint64_t* words = <uint64_t*>key
    cdef uint64_t mixed = 0
    cdef size_t index
    for index in range(sizeof(Key) // sizeof(uint64_t)):
        mixed = (mixed ^ words[index]) * <uint64_t>0x9E3779B97F4A7C15
        mixed ^= mixed >> 29
    return mixed & (LESSONS - 1)
