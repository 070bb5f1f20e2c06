/* The heartbeat between hosts: a thread of its own that needs no GIL, and so goes on during a long native call.
 *
 * Every process listens, and has a connection to each of its partners, which are processes on other hosts. Over it go
 * only frames of 16 bytes, from who has made it to who has taken it. What is watched is the kernel there, which
 * acknowledges a frame whether its process runs or not, and needs both directions of the link for that. So:
 *
 * - a frame that stays unacknowledged, while no new connection can be made: the link is cut, in whatever direction, and
 *   both ends see it. (TCP sends the frame again ever more rarely, so that alone would see a mended link too late.)
 * - acknowledged, but no beat comes back: the process over there is stopped, or gets no processor, and is alive;
 * - the connection ends, and a new one is refused: the process has ended.
 *
 * Silence is counted only while this thread runs itself. Who is silent for too long is dead, for good: all partners are
 * told, and itself as well, if it can be reached again; who is told that it is dead takes the sender for dead. */
#ifndef HETCOMM_HEART_H
#define HETCOMM_HEART_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* accept4 */
#endif
#include <linux/sockios.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "heart_line.h"

#define HETCOMM_TICK 0.1        /* seconds between two looks, */
#define HETCOMM_BEAT_EVERY 0.2  /* two beats, */
#define HETCOMM_RETRY 0.1       /* two attempts to connect; */
#define HETCOMM_CONNECTING 1.0  /* how long one of them may take, */
#define HETCOMM_REFUSED 0.3     /* how long a process must refuse connections to have ended, */
#define HETCOMM_SUSPICION 1.0   /* and be silent to be suspected; */
#define HETCOMM_STUCK 0.4       /* without an acknowledgement, until probes go out, */
#define HETCOMM_PROBE 0.2       /* and between two of them */
#define HETCOMM_STRANGER 5.0    /* seconds in which who connects must have shown that it has the key */

enum { HETCOMM_STRANGERS = 64 };
enum { HETCOMM_UNMET, HETCOMM_ALIVE, HETCOMM_QUIET, HETCOMM_CUT, HETCOMM_LEFT, HETCOMM_DEAD };
enum { HETCOMM_BY_SILENCE = 1, HETCOMM_BY_END, HETCOMM_BY_WORD };

typedef struct {
    int rank;
    struct sockaddr_in address;
    hetcomm_line out, in;
    hetcomm_line probe;      /* only to see whether it can be made */
    int met, queued;
    double silence, quiet;   /* seconds without a sign of the link, and of the process, */
    double stuck;            /* and without an acknowledgement of what has been sent */
    double beat_at, retry_at, refused_since;
} hetcomm_partner;

typedef struct hetcomm_heart {
    struct hetcomm_heart *next;
    int rank, nranks, npartners, listener, news, wake, stop, running, foreign;
    double timeout;
    unsigned char key[16];
    unsigned char *states, *causes; /* of each rank */
    hetcomm_partner *partners;
    hetcomm_line strangers[HETCOMM_STRANGERS];
    struct pollfd *fds;
    pthread_t thread;
} hetcomm_heart;

static hetcomm_heart *hetcomm_hearts; /* of this process */

static double hetcomm_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- verdicts */

static hetcomm_partner *hetcomm_partner_of(hetcomm_heart *heart, int rank)
{
    for (int i = 0; i < heart->npartners; i++) {
        if (heart->partners[i].rank == rank) {
            return &heart->partners[i];
        }
    }
    return NULL;
}

/* The partner that is concerned hears it first: what follows is nothing to who is dead. */
static void hetcomm_declare(hetcomm_heart *heart, int rank, int cause)
{
    uint64_t one = 1;
    hetcomm_partner *partner = hetcomm_partner_of(heart, rank);
    if (rank == heart->rank || heart->states[rank] == HETCOMM_DEAD || heart->states[rank] == HETCOMM_LEFT) {
        return;
    }
    heart->causes[rank] = (unsigned char)cause;
    __atomic_store_n(&heart->states[rank], HETCOMM_DEAD, __ATOMIC_RELEASE);
    if (partner != NULL && partner->out.phase == 2) {
        hetcomm_say(heart->key, &partner->out, HETCOMM_DEAD_IS, rank);
    }
    for (int i = 0; i < heart->npartners; i++) {
        if (heart->partners[i].rank != rank && heart->partners[i].out.phase == 2 &&
            heart->states[heart->partners[i].rank] != HETCOMM_DEAD) {
            hetcomm_say(heart->key, &heart->partners[i].out, HETCOMM_DEAD_IS, rank);
        }
    }
    if (write(heart->news, &one, sizeof one) < 0) {
        return; /* it is full, which is as readable */
    }
}

static void hetcomm_told(hetcomm_heart *heart, hetcomm_partner *partner, int kind, int rank)
{
    if (heart->states[partner->rank] == HETCOMM_DEAD) {
        return;
    }
    partner->quiet = 0;
    if (kind == HETCOMM_BYE) {
        __atomic_store_n(&heart->states[partner->rank], HETCOMM_LEFT, __ATOMIC_RELEASE);
    } else if (kind == HETCOMM_DEAD_IS) {
        hetcomm_declare(heart, rank == heart->rank ? partner->rank : rank, HETCOMM_BY_WORD);
    }
}

/* ---- who connects to this process */

static void hetcomm_accept(hetcomm_heart *heart, double now)
{
    hetcomm_line *place = &heart->strangers[0];
    int fd = accept4(heart->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        return;
    }
    for (int i = 0; i < HETCOMM_STRANGERS && place->fd >= 0; i++) {
        hetcomm_line *other = &heart->strangers[i];
        place = other->fd < 0 || other->since < place->since ? other : place;
    }
    hetcomm_hang_up(place); /* the one that has been silent for the longest */
    hetcomm_tune(fd);
    place->fd = fd;
    place->since = now;
    if (getrandom(place->nonces + 8, 8, 0) != 8 ||
        send(fd, place->nonces + 8, 8, MSG_NOSIGNAL | MSG_DONTWAIT) != 8) {
        hetcomm_hang_up(place);
    }
}

static void hetcomm_call(hetcomm_heart *heart, hetcomm_partner *partner, double now);

static void hetcomm_meet(hetcomm_heart *heart, hetcomm_line *line)
{
    hetcomm_partner *partner;
    uint32_t magic;
    int rank, kind;
    if (line->phase == 0) {
        int taken = hetcomm_take(line, 12);
        memcpy(&magic, line->data, 4);
        if (taken < 0 || (taken > 0 && magic != HETCOMM_MAGIC)) {
            hetcomm_hang_up(line);
        } else if (taken > 0) {
            memcpy(line->nonces, line->data + 4, 8);
            line->phase = 1;
        }
        return;
    }
    kind = hetcomm_hear(heart->key, heart->nranks, line, &rank);
    partner = kind == HETCOMM_HELLO ? hetcomm_partner_of(heart, rank) : NULL;
    if (partner != NULL) {
        hetcomm_hang_up(&partner->in);
        partner->in = *line;
        partner->in.phase = 2;
        line->fd = -1; /* it is not his any more */
        hetcomm_say(heart->key, &partner->in, HETCOMM_WELCOME, heart->rank);
        partner->quiet = 0;
        if (heart->states[rank] == HETCOMM_DEAD && partner->out.phase != 2) {
            hetcomm_call(heart, partner, hetcomm_clock()); /* to tell it so */
        }
    }
    if (kind != 0) {
        hetcomm_hang_up(line);
    }
}

static void hetcomm_listen_to(hetcomm_heart *heart, hetcomm_partner *partner)
{
    int rank, kind;
    while (partner->in.fd >= 0 && (kind = hetcomm_hear(heart->key, heart->nranks, &partner->in, &rank)) != 0) {
        if (kind < 0) {
            hetcomm_hang_up(&partner->in);
        } else {
            hetcomm_told(heart, partner, kind, rank);
        }
    }
}

/* ---- whom this process connects to */

static void hetcomm_dial(hetcomm_heart *heart, hetcomm_line *line, struct sockaddr_in *to, double now)
{
    struct sockaddr_in own;
    socklen_t length = sizeof own;
    hetcomm_hang_up(line);
    line->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    line->since = now;
    if (line->fd < 0) {
        return;
    }
    hetcomm_tune(line->fd);
    if (getsockname(heart->listener, (struct sockaddr *)&own, &length) == 0) {
        own.sin_port = 0;
        (void)!bind(line->fd, (struct sockaddr *)&own, sizeof own); /* any other will do, too */
    }
    if (connect(line->fd, (struct sockaddr *)to, sizeof *to) != 0 && errno != EINPROGRESS) {
        hetcomm_hang_up(line);
    }
}

static void hetcomm_call(hetcomm_heart *heart, hetcomm_partner *partner, double now)
{
    partner->retry_at = now + HETCOMM_RETRY;
    hetcomm_dial(heart, &partner->out, &partner->address, now);
}

static int hetcomm_outcome(const hetcomm_line *line)
{
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(line->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
}

static void hetcomm_probed(hetcomm_partner *partner)
{
    if (hetcomm_outcome(&partner->probe) == 0) {
        partner->silence = 0;
    }
    hetcomm_hang_up(&partner->probe);
}

static void hetcomm_connected(hetcomm_heart *heart, hetcomm_partner *partner, double now)
{
    unsigned char hello[12];
    uint32_t magic = HETCOMM_MAGIC;
    hetcomm_line *line = &partner->out;
    int error = hetcomm_outcome(line);
    if (error != 0) {
        hetcomm_hang_up(line);
        if (error != ECONNREFUSED) {
            partner->refused_since = 0;
        } else if (partner->refused_since == 0) {
            partner->refused_since = now;
        } else if (partner->met && now - partner->refused_since >= HETCOMM_REFUSED) {
            hetcomm_declare(heart, partner->rank, HETCOMM_BY_END);
        }
        return;
    }
    partner->refused_since = 0;
    partner->silence = 0;
    memcpy(hello, &magic, 4);
    line->phase = 1;
    if (getrandom(line->nonces, 8, 0) != 8) {
        hetcomm_hang_up(line);
        return;
    }
    memcpy(hello + 4, line->nonces, 8);
    if (send(line->fd, hello, sizeof hello, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)sizeof hello) {
        hetcomm_hang_up(line);
    }
}

static void hetcomm_greeted(hetcomm_heart *heart, hetcomm_partner *partner)
{
    hetcomm_line *line = &partner->out;
    int rank, kind;
    if (line->phase == 1 && line->sent == 0) {
        int taken = hetcomm_take(line, 8);
        if (taken < 0) {
            hetcomm_hang_up(line);
        } else if (taken > 0) {
            memcpy(line->nonces + 8, line->data, 8);
            hetcomm_say(heart->key, line, HETCOMM_HELLO, heart->rank);
        }
        return;
    }
    kind = hetcomm_hear(heart->key, heart->nranks, line, &rank);
    if (kind == HETCOMM_WELCOME && rank == partner->rank && line->phase == 1) {
        line->phase = 2;
        partner->met = 1;
        partner->silence = partner->stuck = 0;
        partner->queued = 0;
        if (heart->states[partner->rank] == HETCOMM_DEAD) {
            hetcomm_say(heart->key, line, HETCOMM_DEAD_IS, partner->rank);
        }
        for (int other = 0; other < heart->nranks; other++) {
            if (other != partner->rank && heart->states[other] == HETCOMM_DEAD) {
                hetcomm_say(heart->key, line, HETCOMM_DEAD_IS, other);
            }
        }
    } else if (kind != 0) {
        hetcomm_hang_up(line); /* it says nothing more, so this is its end */
    }
}

/* ---- what follows from it */

/* Whether it is dead by its silence, which this look has found. */
static int hetcomm_assess(hetcomm_heart *heart, hetcomm_partner *partner, double now, double ran)
{
    int state = heart->states[partner->rank], queued = 0;
    hetcomm_line *line = &partner->out;
    if (state == HETCOMM_DEAD || state == HETCOMM_LEFT) {
        return 0;
    }
    partner->quiet += ran;
    partner->silence += partner->met ? ran : 0;
    partner->stuck += ran;
    if (line->phase == 2 && ioctl(line->fd, SIOCOUTQ, &queued) == 0) {
        if (queued == 0 || queued < partner->queued) {
            partner->silence = partner->stuck = 0;
        }
        if (queued == 0 && now >= partner->beat_at) {
            hetcomm_say(heart->key, line, HETCOMM_BEAT, heart->rank);
            partner->beat_at = now + HETCOMM_BEAT_EVERY;
            queued = HETCOMM_FRAME;
        }
        partner->queued = queued;
        if (partner->stuck >= HETCOMM_STUCK && (partner->probe.fd < 0 || now - partner->probe.since > HETCOMM_PROBE)) {
            hetcomm_dial(heart, &partner->probe, &partner->address, now);
        }
    } else if (line->fd < 0 ? now >= partner->retry_at : now - line->since > HETCOMM_CONNECTING) {
        hetcomm_call(heart, partner, now);
    }
    if (partner->silence >= heart->timeout) {
        hetcomm_declare(heart, partner->rank, HETCOMM_BY_SILENCE);
        return 1;
    }
    state = !partner->met                             ? HETCOMM_UNMET
          : partner->silence >= HETCOMM_SUSPICION     ? HETCOMM_CUT
          : partner->quiet < HETCOMM_SUSPICION        ? HETCOMM_ALIVE
          : partner->silence >= HETCOMM_SUSPICION / 2 ? HETCOMM_CUT
                                                      : HETCOMM_QUIET;
    __atomic_store_n(&heart->states[partner->rank], (unsigned char)state, __ATOMIC_RELEASE);
    return 0;
}

/* Whoever has fallen silent with one that is dead is so as well, though its last beat may have come a little later. */
static void hetcomm_assess_all(hetcomm_heart *heart, double now, double ran)
{
    int died = 0;
    for (int i = 0; i < heart->npartners; i++) {
        died |= hetcomm_assess(heart, &heart->partners[i], now, ran);
    }
    for (int i = 0; died && i < heart->npartners; i++) {
        if (heart->partners[i].silence >= heart->timeout - HETCOMM_BEAT_EVERY - HETCOMM_TICK) {
            hetcomm_declare(heart, heart->partners[i].rank, HETCOMM_BY_SILENCE);
        }
    }
}

static void hetcomm_watch_line(struct pollfd *at, const hetcomm_line *line, int connecting)
{
    at->fd = line->fd; /* poll passes over -1 */
    at->events = connecting ? POLLOUT : POLLIN;
    at->revents = 0;
}

/* Wait for at most `seconds`, and take what has come. */
static void hetcomm_listen(hetcomm_heart *heart, double seconds)
{
    struct pollfd *fds = heart->fds;
    int partners = heart->npartners, first = 2 + 3 * partners;
    double now;
    fds[0] = (struct pollfd){heart->wake, POLLIN, 0};
    fds[1] = (struct pollfd){heart->listener, POLLIN, 0};
    for (int i = 0; i < partners; i++) {
        hetcomm_watch_line(&fds[2 + 3 * i], &heart->partners[i].out, heart->partners[i].out.phase == 0);
        hetcomm_watch_line(&fds[3 + 3 * i], &heart->partners[i].in, 0);
        hetcomm_watch_line(&fds[4 + 3 * i], &heart->partners[i].probe, 1);
    }
    for (int i = 0; i < HETCOMM_STRANGERS; i++) {
        hetcomm_watch_line(&fds[first + i], &heart->strangers[i], 0);
    }
    if (poll(fds, (nfds_t)(first + HETCOMM_STRANGERS), seconds > 0 ? (int)(1000 * seconds) + 1 : 0) <= 0) {
        return;
    }
    now = hetcomm_clock();
    for (int i = 0; i < HETCOMM_STRANGERS; i++) {
        if (fds[first + i].revents) {
            hetcomm_meet(heart, &heart->strangers[i]);
        }
    }
    for (int i = 0; i < partners; i++) {
        hetcomm_partner *partner = &heart->partners[i];
        struct pollfd *at = &fds[2 + 3 * i];
        if (at[1].revents && at[1].fd == partner->in.fd) {
            hetcomm_listen_to(heart, partner);
        }
        if (at[2].revents && at[2].fd == partner->probe.fd) {
            hetcomm_probed(partner);
        }
        if (at[0].revents && at[0].fd == partner->out.fd) {
            if (partner->out.phase == 0) {
                hetcomm_connected(heart, partner, now);
            } else {
                hetcomm_greeted(heart, partner);
            }
        }
    }
    if (fds[1].revents) {
        hetcomm_accept(heart, now);
    }
}

static void *hetcomm_beat(void *argument)
{
    hetcomm_heart *heart = argument;
    double looked = hetcomm_clock(), now = looked, ran;
    while (!__atomic_load_n(&heart->stop, __ATOMIC_ACQUIRE)) {
        hetcomm_listen(heart, looked + HETCOMM_TICK - now);
        now = hetcomm_clock();
        if (now - looked < HETCOMM_TICK) {
            continue;
        }
        ran = now - looked < 2 * HETCOMM_TICK ? now - looked : 2 * HETCOMM_TICK; /* it may have been stopped itself */
        looked = now;
        hetcomm_assess_all(heart, now, ran);
        for (int i = 0; i < HETCOMM_STRANGERS; i++) {
            if (heart->strangers[i].fd >= 0 && now - heart->strangers[i].since > HETCOMM_STRANGER) {
                hetcomm_hang_up(&heart->strangers[i]);
            }
        }
    }
    for (int i = 0; i < heart->npartners; i++) {
        if (heart->partners[i].out.phase == 2 && heart->states[heart->partners[i].rank] != HETCOMM_DEAD) {
            hetcomm_say(heart->key, &heart->partners[i].out, HETCOMM_BYE, heart->rank);
        }
    }
    return NULL;
}

/* ---- for Python */

static void hetcomm_close_all(hetcomm_heart *heart)
{
    for (int i = 0; i < heart->npartners; i++) {
        hetcomm_hang_up(&heart->partners[i].out);
        hetcomm_hang_up(&heart->partners[i].in);
        hetcomm_hang_up(&heart->partners[i].probe);
    }
    for (int i = 0; i < HETCOMM_STRANGERS; i++) {
        hetcomm_hang_up(&heart->strangers[i]);
    }
    if (heart->listener >= 0) {
        close(heart->listener);
    }
    if (heart->news >= 0) {
        close(heart->news);
    }
    if (heart->wake >= 0) {
        close(heart->wake);
    }
    heart->listener = heart->news = heart->wake = -1;
}

/* In a forked child, which has no such thread: what it held open would keep its parent alive for the others. */
static void hetcomm_forget_hearts(void)
{
    for (hetcomm_heart *heart = hetcomm_hearts; heart != NULL; heart = heart->next) {
        hetcomm_close_all(heart);
        heart->foreign = 1;
    }
    hetcomm_hearts = NULL;
}

static hetcomm_heart *hetcomm_make_heart(int rank, int nranks, int npartners)
{
    hetcomm_heart *heart = calloc(1, sizeof *heart);
    if (heart == NULL) {
        return NULL;
    }
    heart->rank = rank;
    heart->nranks = nranks;
    heart->npartners = npartners;
    heart->listener = heart->news = heart->wake = -1;
    heart->states = calloc((size_t)nranks, 1);
    heart->causes = calloc((size_t)nranks, 1);
    heart->partners = calloc((size_t)npartners + 1, sizeof *heart->partners);
    heart->fds = calloc((size_t)(2 + 3 * npartners + HETCOMM_STRANGERS), sizeof *heart->fds);
    for (int i = 0; i < HETCOMM_STRANGERS; i++) {
        heart->strangers[i].fd = -1;
    }
    for (int i = 0; heart->partners != NULL && i < npartners; i++) {
        heart->partners[i].out.fd = heart->partners[i].in.fd = heart->partners[i].probe.fd = -1;
    }
    heart->news = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    heart->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    heart->next = hetcomm_hearts;
    hetcomm_hearts = heart;
    return heart;
}

static int hetcomm_start_heart(hetcomm_heart *heart)
{
    sigset_t all, before;
    int error;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads of the interpreter */
    error = pthread_create(&heart->thread, NULL, hetcomm_beat, heart);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    heart->running = error == 0;
    return error;
}

/* Not in a forked child. */
static void hetcomm_stop_heart(hetcomm_heart *heart)
{
    uint64_t one = 1;
    if (heart->running && !heart->foreign) {
        __atomic_store_n(&heart->stop, 1, __ATOMIC_RELEASE);
        (void)!write(heart->wake, &one, sizeof one);
        pthread_join(heart->thread, NULL);
    }
    heart->running = 0;
}

static void hetcomm_free_heart(hetcomm_heart *heart)
{
    for (hetcomm_heart **at = &hetcomm_hearts; *at != NULL; at = &(*at)->next) {
        if (*at == heart) {
            *at = heart->next;
            break;
        }
    }
    hetcomm_close_all(heart);
    free(heart->states);
    free(heart->causes);
    free(heart->partners);
    free(heart->fds);
    free(heart);
}

#endif
