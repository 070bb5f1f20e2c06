/* SipHash-2-4 (Aumasson and Bernstein, 2012): 8 bytes by which a receiver knows that the sender has the key of 16. */
#ifndef HETCOMM_HEART_MAC_H
#define HETCOMM_HEART_MAC_H

#include <stddef.h>
#include <stdint.h>

static inline uint64_t hetcomm_little(const unsigned char *at)
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--) {
        value = value << 8 | at[i];
    }
    return value;
}

static inline uint64_t hetcomm_turned(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

static inline void hetcomm_sip_rounds(uint64_t v[4], int rounds)
{
    while (rounds-- > 0) {
        v[0] += v[1], v[1] = hetcomm_turned(v[1], 13) ^ v[0], v[0] = hetcomm_turned(v[0], 32);
        v[2] += v[3], v[3] = hetcomm_turned(v[3], 16) ^ v[2];
        v[0] += v[3], v[3] = hetcomm_turned(v[3], 21) ^ v[0];
        v[2] += v[1], v[1] = hetcomm_turned(v[1], 17) ^ v[2], v[2] = hetcomm_turned(v[2], 32);
    }
}

/* Of `length` bytes, at most 255. */
static uint64_t hetcomm_mac(const unsigned char key[16], const unsigned char *data, size_t length)
{
    uint64_t k0 = hetcomm_little(key), k1 = hetcomm_little(key + 8), word;
    uint64_t v[4] = {k0 ^ 0x736f6d6570736575u, k1 ^ 0x646f72616e646f6du, k0 ^ 0x6c7967656e657261u,
                     k1 ^ 0x7465646279746573u};
    size_t at = 0;
    for (; at + 8 <= length; at += 8) {
        word = hetcomm_little(data + at);
        v[3] ^= word;
        hetcomm_sip_rounds(v, 2);
        v[0] ^= word;
    }
    word = (uint64_t)length << 56;
    for (int shift = 0; at < length; at++, shift += 8) {
        word |= (uint64_t)data[at] << shift;
    }
    v[3] ^= word;
    hetcomm_sip_rounds(v, 2);
    v[0] ^= word;
    v[2] ^= 0xff;
    hetcomm_sip_rounds(v, 4);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

#endif
