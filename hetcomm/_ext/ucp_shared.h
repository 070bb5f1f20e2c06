/* Memory that processes of one machine share: how one offers another what lies in it, and how that one sees it.
 *
 * The memory is a file without a name (memfd), of which others open the descriptor that /proc shows. They map it for
 * reading only, so nobody can spoil what is not his. */
#ifndef HETCOMM_UCP_SHARED_H
#define HETCOMM_UCP_SHARED_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* What is sent in place of a long message: where it lies. */
typedef struct {
    uint64_t mark[2];
    uint64_t device, inode;  /* of the file */
    uint64_t offset, nbytes; /* of the message in it */
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

/* The memories of others that are mapped here. */
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
        own->device, own->inode, (uint64_t)(start - own->start), nbytes,
        (uint64_t)own->pid << 22 | (__atomic_fetch_add(&made, 1, __ATOMIC_RELAXED) & 0x3fffff), own->pid, own->fd,
    };
    return 1;
}

/* Whether these bytes, which came in place of a longer message, are an offer. */
static inline int hetcomm_is_offer(const void *bytes, size_t length)
{
    return length == sizeof(hetcomm_offer) && !memcmp(bytes, hetcomm_offer_mark, sizeof(hetcomm_offer_mark));
}

/* What is offered, mapped here; NULL if that cannot be. */
static const char *hetcomm_see(hetcomm_views *views, const hetcomm_offer *offer)
{
    char path[64], *start;
    struct stat status;
    void *grown;
    size_t i, nbytes;
    int fd;
    for (i = 0; i < views->count; i++) {
        if (views->seen[i].inode == offer->inode && views->seen[i].device == offer->device) {
            nbytes = views->seen[i].nbytes;
            return offer->offset <= nbytes && offer->nbytes <= nbytes - offer->offset
                ? views->seen[i].start + offer->offset : NULL;
        }
    }
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)offer->pid, (int)offer->fd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return NULL;
    }
    start = MAP_FAILED;
    nbytes = 0;
    if (fstat(fd, &status) == 0 && status.st_dev == offer->device && status.st_ino == offer->inode) {
        nbytes = status.st_size;
        if (offer->offset <= nbytes && offer->nbytes <= nbytes - offer->offset) {
            start = mmap(NULL, nbytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
        }
    }
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
