"""How hetcomm waits (`ucp_wait.h`), for Cython."""

from hetcomm._ext.ucp_api cimport ucp_worker_h


cdef extern from "ucp_wait.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* watched, unsigned long count, int milliseconds)
    short POLLIN
    int sched_yield()
    enum:
        SPINS "HETCOMM_SPINS"
        GO_ON "HETCOMM_GO_ON"
        LATE "HETCOMM_LATE"
        PATROL "HETCOMM_PATROL"
        INTERRUPTED "HETCOMM_INTERRUPTED"
    ctypedef struct Waiter "hetcomm_waiter":
        double deadline
    double now "hetcomm_now" ()
    Waiter wait_for "hetcomm_wait_for" (double seconds, bint escorted)
    int take_turn "hetcomm_turn" (ucp_worker_h worker, Waiter* waiter, pollfd* watched, unsigned count)
