# cython: language_level=3, embedsignature=True, boundscheck=False, wraparound=False
# cython: auto_pickle=False, autotestdict=False
"""The heartbeat between hosts (`heart.h`) for Python: who it is made for, what it says of them, and its end."""

import os

cimport cython
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

__all__ = ["ALIVE", "BY_END", "CAUSES", "CUT", "DEAD", "LEFT", "QUIET", "UNMET", "Heart", "mac"]


cdef extern from *:
    """
    #include <pthread.h>
    """
    int pthread_atfork(void (*before)(), void (*parent)(), void (*child)() noexcept) nogil

cdef extern from "heart.h" nogil:
    enum:
        _UNMET "HETCOMM_UNMET"
        _ALIVE "HETCOMM_ALIVE"
        _QUIET "HETCOMM_QUIET"
        _CUT "HETCOMM_CUT"
        _LEFT "HETCOMM_LEFT"
        _DEAD "HETCOMM_DEAD"
        _BY_END "HETCOMM_BY_END"
    ctypedef struct in_addr:
        unsigned int s_addr
    ctypedef struct sockaddr_in:
        unsigned short sin_family
        unsigned short sin_port
        in_addr sin_addr
    ctypedef struct Partner "hetcomm_partner":
        int rank
        sockaddr_in address
    ctypedef struct HeartState "hetcomm_heart":
        int nranks, npartners, listener, news, wake, running, foreign
        double timeout
        unsigned char key[16]
        unsigned char* states
        unsigned char* causes
        Partner* partners
        void* fds
    int AF_INET
    unsigned short htons(unsigned short value)
    int inet_pton(int family, const char* text, void* to)
    HeartState* make_heart "hetcomm_make_heart" (int rank, int nranks, int npartners)
    int start_heart "hetcomm_start_heart" (HeartState* heart)
    void stop_heart "hetcomm_stop_heart" (HeartState* heart)
    void free_heart "hetcomm_free_heart" (HeartState* heart)
    void forget_hearts "hetcomm_forget_hearts" () noexcept
    uint64_t hetcomm_mac(const unsigned char* key, const unsigned char* data, size_t length)

cdef extern from "<unistd.h>" nogil:
    ssize_t read_fd "read" (int fd, void* to, size_t nbytes)

if pthread_atfork(NULL, NULL, forget_hearts) != 0:
    raise MemoryError("pthread_atfork failed")

UNMET, ALIVE, QUIET, CUT, LEFT, DEAD = _UNMET, _ALIVE, _QUIET, _CUT, _LEFT, _DEAD
BY_END = _BY_END
CAUSES = ("", "its host has not answered", "its process has ended", "another rank has told so")


def mac(bytes key, bytes data):
    """What goes with `data`, of at most 255 bytes, from who has `key`, of 16: SipHash-2-4."""
    if len(key) != 16 or len(data) > 255:
        raise ValueError(f"a key of {len(key)} bytes, or {len(data)} bytes of data")
    return hetcomm_mac(key, data, len(data))


@cython.final
cdef class Heart:
    """A thread that tells this process's partners that it lives, and hears from them.

    It runs until `close`, without the GIL. A rank is DEAD for good. That one is, by the heartbeat's own look or since
    another rank has said so, shows at `fileno`.

    Args:
        rank: This process's, of
        nranks: that many.
        listener: A listening socket of this process, which is taken over.
        partners: Address and port of each rank that there is a heartbeat with.
        key: 16 bytes that only the ranks know.
        timeout: Seconds without a sign after which a rank is taken for dead.

    Raises:
        ValueError: A rank, an address or the key is none.
        OSError: There is no room for a thread or its descriptors.
    """

    cdef HeartState* _heart
    cdef readonly tuple partners

    def __init__(self, int rank, int nranks, int listener, dict partners, bytes key, double timeout):
        cdef int place = 0
        cdef int error
        cdef Partner* partner
        if self._heart != NULL or len(key) != 16 or nranks <= 0:
            raise ValueError(f"a key of {len(key)} bytes, {nranks} ranks")
        self._heart = make_heart(rank, nranks, len(partners))
        if self._heart == NULL or self._heart.states == NULL or self._heart.causes == NULL or (
                self._heart.partners == NULL or self._heart.fds == NULL):
            raise MemoryError()
        memcpy(self._heart.key, <const unsigned char*>key, 16)
        self._heart.timeout = timeout
        for number, (host, port) in partners.items():
            partner = &self._heart.partners[place]
            partner.rank = number
            partner.address.sin_family = AF_INET
            partner.address.sin_port = htons(port)
            if not 0 <= <int>number < nranks or inet_pton(AF_INET, host.encode(), &partner.address.sin_addr) != 1:
                raise ValueError(f"rank {number} at {host}:{port}")
            place += 1
        self.partners = tuple(partners)
        if self._heart.news < 0 or self._heart.wake < 0:
            raise OSError("no descriptor is free for the heartbeat")
        self._heart.listener = listener
        error = start_heart(self._heart)
        if error:
            raise OSError(error, os.strerror(error))

    def fileno(self):
        """The descriptor that is readable when a rank has died since `dead` was asked; -1 after `close`."""
        return -1 if self._heart == NULL else self._heart.news

    def dead(self):
        """The ranks that are dead."""
        cdef uint64_t count
        cdef int rank
        if self._heart == NULL:
            return frozenset()
        if self._heart.news >= 0:
            read_fd(self._heart.news, &count, sizeof(count))
        return frozenset([rank for rank in range(self._heart.nranks) if self._heart.states[rank] == DEAD])

    def state(self, int rank):
        """What is known of a rank: UNMET, ALIVE, QUIET (its host answers, but it does not run), CUT, LEFT or DEAD."""
        if self._heart == NULL or not 0 <= rank < self._heart.nranks:
            return UNMET
        return self._heart.states[rank]

    def cause(self, int rank):
        """Why a rank that is DEAD was declared so, as text."""
        if self._heart == NULL or not 0 <= rank < self._heart.nranks:
            return ""
        return CAUSES[self._heart.causes[rank]]

    def close(self):
        """Tell the partners that this process leaves in good faith, and end; calling it again does nothing."""
        cdef HeartState* heart = self._heart
        self._heart = NULL
        if heart != NULL:
            with nogil:
                stop_heart(heart)
            free_heart(heart)

    def __dealloc__(self):
        if self._heart != NULL:
            stop_heart(self._heart)
            free_heart(self._heart)
