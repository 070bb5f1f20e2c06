/* How hetcomm waits: progress, spin, yield the processor, sleep; and what it watches meanwhile.
 *
 * Beside the worker's own descriptor a sleeper watches one pidfd per peer process on this machine. A
 * pidfd becomes readable when its process ends, zombies included, which UCX's own keepalive misses. */
#ifndef HETCOMM_UCP_WAIT_H
#define HETCOMM_UCP_WAIT_H

#include <poll.h>
#include <sched.h>
#include <time.h>

#include "ucp_table.h"

enum { HETCOMM_GO_ON, HETCOMM_LATE, HETCOMM_PATROL, HETCOMM_INTERRUPTED };

#define HETCOMM_SPINS 20             /* turns without result before the first yield: about a microsecond */
#define HETCOMM_YIELD_SECONDS 0.001  /* yielding before sleeping */
#define HETCOMM_PATROL_SECONDS 0.05  /* between looks at signals and processes; the longest sleep */
#define HETCOMM_ESCORT_SECONDS 0.002 /* the same where a companion must be called meanwhile */

typedef struct {
    double deadline;
    double patrol_every;
    double patrol_at;
    double idle_since;
    unsigned turns;
    unsigned spins;
} hetcomm_waiter;

static inline double hetcomm_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static inline hetcomm_waiter hetcomm_wait_for(double seconds, int escorted)
{
    hetcomm_waiter waiter = {0};
    double now = hetcomm_now();
    waiter.deadline = now + seconds;
    waiter.patrol_every = escorted ? HETCOMM_ESCORT_SECONDS : HETCOMM_PATROL_SECONDS;
    waiter.patrol_at = now + waiter.patrol_every;
    return waiter;
}

/* One turn of waiting. `watched[0]` is the worker's descriptor, negative if it has none, and the rest
 * are pidfds. HETCOMM_PATROL asks the caller to look at signals and at the pidfds,
 * and to call its companion. */
static int hetcomm_turn(ucp_worker_h worker, hetcomm_waiter *waiter, struct pollfd *watched, unsigned count)
{
    double now, rest;
    waiter->turns++;
    if (hetcomm_ucp.ucp_worker_progress(worker)) {
        waiter->spins = 0;
        waiter->idle_since = 0;
        if (waiter->turns & 255) {
            return HETCOMM_GO_ON;
        }
    } else if (++waiter->spins < HETCOMM_SPINS) {
        return HETCOMM_GO_ON;
    }
    now = hetcomm_now();
    if (now >= waiter->deadline) {
        return HETCOMM_LATE;
    }
    if (now >= waiter->patrol_at) {
        waiter->patrol_at = now + waiter->patrol_every;
        return HETCOMM_PATROL;
    }
    if (waiter->spins == 0) {
        return HETCOMM_GO_ON;
    }
    if (waiter->idle_since == 0) {
        waiter->idle_since = now;
    }
    if (now - waiter->idle_since < HETCOMM_YIELD_SECONDS) {
        sched_yield();
        return HETCOMM_GO_ON;
    }
    if (watched[0].fd < 0) {
        rest = 0.001; /* nothing could wake us */
    } else if (hetcomm_ucp.ucp_worker_arm(worker) == UCS_OK) {
        rest = waiter->deadline - now < waiter->patrol_every ? waiter->deadline - now : waiter->patrol_every;
    } else {
        return HETCOMM_GO_ON;
    }
    if (poll(watched, count, (int)(1000 * rest) + 1) != 0 && !(watched[0].revents & POLLIN)) {
        waiter->patrol_at = 0; /* a signal or the end of a process */
    }
    return HETCOMM_GO_ON;
}

#endif
