/* Memory that processes of one machine share: how one offers another what lies in it, and how that one sees it.
 *
 * The memory is a file without a name (memfd), of which others open the descriptor that /proc shows. They map it for
 * reading only, so nobody can spoil what is not his. It is sealed against truncation, which would end its readers with
 * SIGBUS; an offer of a file that is not, or of another process's than the sender's, is declined. */
#ifndef HETCOMM_UCP_SHARED_H
#define HETCOMM_UCP_SHARED_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* the seals of <fcntl.h> */
#endif

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "ucp_wait.h"

/* What is sent in place of a long message: where it lies. */
typedef struct {
    uint64_t mark[2];
    uint64_t device, inode;  /* of the file */
    uint64_t offset, nbytes; /* of the message, or of a part of it, in the file */
    uint64_t rest;           /* of the message from there on: as much, if no other part follows */
    uint64_t number;         /* of the offer, in 44 bits: no other on this machine has it */
    int32_t pid, fd;         /* where the file is open */
} hetcomm_offer;

static const uint64_t hetcomm_offer_mark[2] = {0x68c3d1a90b5e7f24, 0xe29b46f7135ad08c};

/* The memory that this process shares; all NULL and 0 if none. */
typedef struct {
    char *start;
    size_t nbytes;
    uint64_t device, inode;
    int32_t pid, fd;
} hetcomm_arena;

static hetcomm_arena hetcomm_own_arena;

/* The memories of others that are mapped here: one of each process, so that more are somebody's mischief. */
enum { HETCOMM_MOST_VIEWS = 4096 };
typedef struct {
    struct {
        uint64_t device, inode;
        char *start;
        size_t nbytes;
    } *seen;
    size_t count;
} hetcomm_views;

/* Share `nbytes` bytes from `start` on, which are the file `fd`, mapped from its beginning; -1 and errno on failure. */
static int hetcomm_share(char *start, size_t nbytes, int fd)
{
    struct stat status;
    if (fstat(fd, &status) != 0) {
        return -1;
    }
    hetcomm_own_arena = (hetcomm_arena){start, nbytes, status.st_dev, status.st_ino, getpid(), fd};
    return 0;
}

/* Whether a message lies in the memory that this process shares; then `offer` is made. */
static inline int hetcomm_offers(const char *start, size_t nbytes, hetcomm_offer *offer)
{
    static uint64_t made;
    const hetcomm_arena *own = &hetcomm_own_arena;
    if (own->nbytes < nbytes || start < own->start || (size_t)(start - own->start) > own->nbytes - nbytes) {
        return 0;
    }
    *offer = (hetcomm_offer){
        {hetcomm_offer_mark[0], hetcomm_offer_mark[1]},
        own->device, own->inode, (uint64_t)(start - own->start), nbytes, nbytes,
        (uint64_t)own->pid << 22 | (__atomic_fetch_add(&made, 1, __ATOMIC_RELAXED) & 0x3fffff), own->pid, own->fd,
    };
    return 1;
}

/* Memory that only UCX may touch, as a device's is: a fake device, whose memory is the host's, has what the host does to
 * it refused and counted. */
enum { HETCOMM_MOST_GUARDED = 1024 };
static struct {
    struct {
        const char *start, *stop;
    } ranges[HETCOMM_MOST_GUARDED];
    size_t count, refused;
} hetcomm_guarded;

/* Guard a range, once more if it is already; -1 if there are too many. */
static int hetcomm_guard(const char *start, size_t nbytes)
{
    if (hetcomm_guarded.count == HETCOMM_MOST_GUARDED) {
        return -1;
    }
    hetcomm_guarded.ranges[hetcomm_guarded.count].start = start;
    hetcomm_guarded.ranges[hetcomm_guarded.count].stop = start + nbytes;
    hetcomm_guarded.count++;
    return 0;
}

/* Undo that once. */
static void hetcomm_unguard(const char *start, size_t nbytes)
{
    for (size_t i = 0; i < hetcomm_guarded.count; i++) {
        if (hetcomm_guarded.ranges[i].start == start && hetcomm_guarded.ranges[i].stop == start + nbytes) {
            hetcomm_guarded.ranges[i] = hetcomm_guarded.ranges[--hetcomm_guarded.count];
            return;
        }
    }
}

/* Whether the host may touch a range; counts if not. */
static inline int hetcomm_may_touch(const void *start, size_t nbytes)
{
    const char *first = (const char *)start;
    for (size_t i = 0; i < hetcomm_guarded.count; i++) {
        if (hetcomm_guarded.ranges[i].start < first + nbytes && first < hetcomm_guarded.ranges[i].stop) {
            hetcomm_guarded.refused++;
            return 0;
        }
    }
    return 1;
}

/* Whether these bytes, which came in place of a longer message, are an offer. */
static inline int hetcomm_is_offer(const void *bytes, size_t length)
{
    return length == sizeof(hetcomm_offer) && hetcomm_may_touch(bytes, length) &&
        !memcmp(bytes, hetcomm_offer_mark, sizeof(hetcomm_offer_mark));
}

/* Whether a range lies in so many bytes, and is not empty. */
static inline int hetcomm_within(const hetcomm_offer *offer, uint64_t nbytes)
{
    return offer->nbytes > 0 && offer->offset <= nbytes && offer->nbytes <= nbytes - offer->offset;
}

/* Open the file of an offer, if it is a file that its owner cannot make shorter. */
static int hetcomm_open_offered(const hetcomm_offer *offer, uint64_t *nbytes)
{
    char path[64];
    struct stat status;
    int fd, seals;
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)offer->pid, (int)offer->fd);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* whatever it is, it must not block */
    if (fd < 0) {
        return -1;
    }
    seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) ||
        status.st_dev != offer->device || status.st_ino != offer->inode || status.st_size <= 0) {
        close(fd);
        return -1;
    }
    *nbytes = (uint64_t)status.st_size;
    return fd;
}

/* What the process `pid` offers, mapped here; NULL if that cannot be. Nothing that the offer says is believed. */
static const char *hetcomm_see(hetcomm_views *views, const hetcomm_offer *offer, int32_t pid)
{
    char *start;
    void *grown;
    size_t i;
    uint64_t nbytes;
    int fd;
    if (offer->pid != pid || pid <= 0 || offer->fd < 0) {
        return NULL;
    }
    for (i = 0; i < views->count; i++) {
        if (views->seen[i].inode == offer->inode && views->seen[i].device == offer->device) {
            return hetcomm_within(offer, views->seen[i].nbytes) ? views->seen[i].start + offer->offset : NULL;
        }
    }
    if (views->count == HETCOMM_MOST_VIEWS) {
        return NULL;
    }
    fd = hetcomm_open_offered(offer, &nbytes);
    if (fd < 0) {
        return NULL;
    }
    start = hetcomm_within(offer, nbytes)
        ? mmap(NULL, nbytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0) : MAP_FAILED;
    close(fd);
    grown = start == MAP_FAILED ? NULL : realloc(views->seen, (i + 1) * sizeof(*views->seen));
    if (grown == NULL) {
        if (start != MAP_FAILED) {
            munmap(start, nbytes);
        }
        return NULL;
    }
    views->seen = grown;
    views->seen[i].device = offer->device;
    views->seen[i].inode = offer->inode;
    views->seen[i].start = start;
    views->seen[i].nbytes = nbytes;
    views->count++;
    return start + offer->offset;
}

typedef uint64_t hetcomm_words __attribute__((vector_size(16), may_alias, aligned(1)));

/* Copy what processors pass to one another. Not memcpy, which takes `rep movsb` from 2 KiB on: on lines that another
 * core has read, AMD's write a third as much in a second that way as with any loop. */
static void hetcomm_copy(char *dst, const char *src, size_t nbytes)
{
    size_t i;
    for (i = 0; i + 64 <= nbytes; i += 64) {
        const hetcomm_words *from = (const hetcomm_words *)(src + i);
        hetcomm_words *to = (hetcomm_words *)(dst + i), a = from[0], b = from[1], c = from[2], d = from[3];
        to[0] = a;
        to[1] = b;
        to[2] = c;
        to[3] = d;
    }
    memcpy(dst + i, src + i, nbytes - i);
}

/* The same to a multiple of 64 bytes that another core is to read next: past the caches, so that its copies of the
 * lines need not be called in. */
static void hetcomm_copy_past(char *dst, const char *src, size_t nbytes)
{
#if defined(__SSE2__)
    size_t i;
    for (i = 0; i + 64 <= nbytes; i += 64) {
        const __m128i *from = (const __m128i *)(src + i);
        __m128i *to = (__m128i *)(dst + i), a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
        __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
        _mm_stream_si128(to, a);
        _mm_stream_si128(to + 1, b);
        _mm_stream_si128(to + 2, c);
        _mm_stream_si128(to + 3, d);
    }
    _mm_sfence();
    memcpy(dst + i, src + i, nbytes - i);
#else
    hetcomm_copy(dst, src, nbytes);
#endif
}

/* How memory that a peer reads is best written. */
typedef struct {
    int is_far;         /* past the caches: lines that it has read come back slowly */
    unsigned tries_in;  /* messages until that is found out again */
} hetcomm_distance;

#define HETCOMM_TRIED 16384          /* bytes */
#define HETCOMM_TRIES_EVERY 16       /* messages */
#define HETCOMM_NEAR_RATE 8.0e9      /* bytes per second: 16 to 36e9 between the threads of one core, 4e9 between cores */

/* Whether memory that a peer has read should not be written again, as far as is known; now and then it is not. */
static inline int hetcomm_is_far(hetcomm_distance *distance)
{
    if (distance->is_far || distance->tries_in == 0) {
        return 1;
    }
    distance->tries_in--;
    return 0;
}

/* Copy a message to where a peer has read others: a part of it by way of the caches now and then, to see how long that
 * takes, and the rest as was found best. */
static void hetcomm_put(char *dst, const char *src, size_t nbytes, hetcomm_distance *distance)
{
    double begin;
    if (nbytes < 2 * HETCOMM_TRIED) {
        hetcomm_copy(dst, src, nbytes);
        return;
    }
    if (distance->tries_in == 0) {
        distance->tries_in = HETCOMM_TRIES_EVERY;
        begin = hetcomm_now();
        hetcomm_copy(dst, src, HETCOMM_TRIED);
        distance->is_far = HETCOMM_TRIED < HETCOMM_NEAR_RATE * (hetcomm_now() - begin);
        dst += HETCOMM_TRIED;
        src += HETCOMM_TRIED;
        nbytes -= HETCOMM_TRIED;
    }
    distance->tries_in--;
    (distance->is_far ? hetcomm_copy_past : hetcomm_copy)(dst, src, nbytes);
}

/* Unmap all. */
static void hetcomm_forget(hetcomm_views *views)
{
    for (size_t i = 0; i < views->count; i++) {
        munmap(views->seen[i].start, views->seen[i].nbytes);
    }
    free(views->seen);
    views->seen = NULL;
    views->count = 0;
}

#endif
