/* A line of the heartbeat: a TCP connection that carries frames of 16 bytes from who has made it to who has taken it.
 *
 * First both send 8 random bytes, the maker after a mark of 4. Then come frames: a kind, the rank it is about, and a seal
 * over these, both ends' random bytes, and the number of the frame on the line, which only who has the key can make. So
 * nothing can be put in, left out or sent again. The maker begins with HELLO; the taker answers that with WELCOME, which
 * is all that it ever says. */
#ifndef HETCOMM_HEART_LINE_H
#define HETCOMM_HEART_LINE_H

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "heart_mac.h"

#ifndef TCP_THIN_LINEAR_TIMEOUTS
#define TCP_THIN_LINEAR_TIMEOUTS 16
#endif
#ifndef TCP_RTO_MAX_MS
#define TCP_RTO_MAX_MS 44 /* since Linux 6.15 */
#endif

enum { HETCOMM_FRAME = 16, HETCOMM_MAGIC = 0x31424348 };
enum { HETCOMM_HELLO = 1, HETCOMM_WELCOME, HETCOMM_BEAT, HETCOMM_DEAD_IS, HETCOMM_BYE };

typedef struct {
    int fd;                  /* -1: there is none */
    int phase;               /* 0 connecting, 1 greeting, 2 the other end has shown that it has the key */
    double since;
    unsigned char nonces[16];/* of who has made it, then of who has taken it */
    uint64_t sent, received; /* frames */
    unsigned have;           /* bytes of what comes next */
    unsigned char data[HETCOMM_FRAME];
} hetcomm_line;

static void hetcomm_hang_up(hetcomm_line *line)
{
    if (line->fd >= 0) {
        close(line->fd);
    }
    memset(line, 0, sizeof *line);
    line->fd = -1;
}

static uint64_t hetcomm_seal(const unsigned char key[16], hetcomm_line *line, const unsigned char *frame, uint64_t number)
{
    unsigned char data[32];
    memcpy(data, line->nonces, 16);
    memcpy(data + 16, &number, 8);
    memcpy(data + 24, frame, 8);
    return hetcomm_mac(key, data, sizeof data);
}

/* Frames are so small that the kernel takes a whole one or none, but for a line that has been down for very long. */
static void hetcomm_say(const unsigned char key[16], hetcomm_line *line, int kind, int rank)
{
    unsigned char frame[HETCOMM_FRAME] = {(unsigned char)kind};
    uint32_t about = (uint32_t)rank;
    uint64_t mac;
    if (line->fd < 0) {
        return;
    }
    memcpy(frame + 4, &about, 4);
    mac = hetcomm_seal(key, line, frame, line->sent << 1 | (kind == HETCOMM_WELCOME));
    memcpy(frame + 8, &mac, 8);
    line->sent++;
    if (send(line->fd, frame, sizeof frame, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)sizeof frame) {
        hetcomm_hang_up(line);
    }
}

/* Take `size` bytes that come next: 1 if they are there, 0 if not yet, -1 if nothing will come any more. */
static int hetcomm_take(hetcomm_line *line, unsigned size)
{
    ssize_t got = recv(line->fd, line->data + line->have, size - line->have, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
        return -1;
    }
    line->have += got > 0 ? (unsigned)got : 0;
    if (line->have < size) {
        return 0;
    }
    line->have = 0;
    return 1;
}

/* The next frame's kind, and in `rank` what it is about; 0 if there is none yet, -1 if the line is of no use. */
static int hetcomm_hear(const unsigned char key[16], int nranks, hetcomm_line *line, int *rank)
{
    uint32_t about;
    uint64_t mac;
    int taken = hetcomm_take(line, HETCOMM_FRAME);
    if (taken <= 0) {
        return taken;
    }
    memcpy(&about, line->data + 4, 4);
    memcpy(&mac, line->data + 8, 8);
    if (mac != hetcomm_seal(key, line, line->data, line->received << 1 | (line->data[0] == HETCOMM_WELCOME)) ||
        about >= (uint32_t)nranks) {
        return -1;
    }
    line->received++;
    *rank = (int)about;
    return line->data[0];
}

static void hetcomm_tune(int fd)
{
    int on = 1, most = 1000;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, &on, sizeof on); /* so that a mended link is seen soon */
    setsockopt(fd, IPPROTO_TCP, TCP_RTO_MAX_MS, &most, sizeof most);
}

#endif
