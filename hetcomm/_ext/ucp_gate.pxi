# One thread at a time moves what a process has in hetcomm.

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

cdef enum:
    GATE_YIELDS = 200          # looks of a waiting thread before it sleeps between them
    REST_YIELDS = 50           # looks of one that rests, to see whether another has come in

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)


@cython.final
cdef class Gate:
    """A lock that its owner can put down in the middle of a wait, and that the fast path takes without a system call.

    Reentrant. It is looked at and taken with the GIL held, which is what makes this safe.

    Args:
        rouse: Called by a thread that finds it taken: interrupts its owner, if that one sleeps in a transport.

    Attributes:
        depth: How often its owner has entered; 0: it is free.
    """

    cdef readonly int depth
    cdef public object rouse
    cdef unsigned long owner
    cdef int wanted            # threads that wait for it; read without the GIL

    def __init__(self, object rouse=None):
        self.rouse = rouse

    @property
    def mine(self):
        """Whether this thread is inside: what runs now, a signal handler for one, has interrupted it."""
        return self.depth > 0 and self.owner == PyThread_get_thread_ident()

    @property
    def is_wanted(self):
        """Whether another thread waits for it."""
        return self.wanted > 0

    def __enter__(self):
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.depth and self.owner == me:
            self.depth += 1
            return
        if self.depth:
            self._await(1)
        self.owner, self.depth = me, 1

    def __exit__(self, *_):
        self.depth -= 1

    def come_second(self):
        """Enter when nobody else wants to."""
        while self.depth or self.wanted:
            self._await(0)
        self.owner, self.depth = PyThread_get_thread_ident(), 1

    cdef inline void _take(self) noexcept:
        """Enter; it is free."""
        self.owner, self.depth = PyThread_get_thread_ident(), 1

    cdef int _await(self, int urgent) except -1:
        """Return when it is free."""
        cdef int turn = 0
        self.wanted += urgent
        try:
            if urgent and self.rouse is not None:
                self.rouse()
            while self.depth or (self.wanted and not urgent):
                with nogil:
                    if turn < GATE_YIELDS:
                        sched_yield()
                    else:
                        usleep(50)
                turn += 1
                if turn & 255 == 0:
                    PyErr_CheckSignals()
        finally:
            self.wanted -= urgent
        return 0

    def open(self):
        """Nobody is inside any more: this is a forked child, which has none of its parent's other threads."""
        self.depth = self.wanted = 0

    def rest(self):
        """Put it down for a moment, if another thread waits for it, and take it up again."""
        cdef int depth, turn
        if not self.wanted:
            return
        depth, self.depth = self.depth, 0
        try:
            for turn in range(REST_YIELDS):
                with nogil:
                    sched_yield()
                if self.depth or not self.wanted:
                    break
            if self.depth:
                self._await(1)
        finally:
            while self.depth:  # a signal handler has raised: nothing of what follows may run beside the other thread
                with nogil:
                    usleep(50)
            self.owner, self.depth = PyThread_get_thread_ident(), depth
