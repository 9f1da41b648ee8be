/* The tiled weight layout, and what every kernel file shares about it.
 *
 * Rows go in groups of 16, columns in blocks of 32. A group is a run of planes, each whole for all
 * its blocks, so that a dot product for 16 rows reads every plane from front to back:
 *
 *   codes   4 or 8 bits: a 64-byte vector holds 4 columns of each of the 16 rows, row by row;
 *           4-bit vectors j = 0..3 hold columns 4j.. in low and 16 + 4j.. in high nibbles
 *   high    q6_k only: two more bits, vectors 0 and 1 for columns 0..15 and 16..31
 *   scales  16 rows side by side: see the table in layout()
 *   supers  q4_k, q6_k: one scale for 8 blocks
 *
 * Dense formats stay as they lie in the file: row after row. */
#ifndef KF_TILE_H
#define KF_TILE_H

#include <stddef.h>
#include <stdint.h>

/* Numbers are GGUF's. */
enum kf_format {
    KF_F32 = 0, KF_F16 = 1, KF_Q4_0 = 2, KF_Q4_1 = 3, KF_Q8_0 = 8,
    KF_Q4_K = 12, KF_Q6_K = 14, KF_BF16 = 30,
};

enum { GROUP = 16, BLOCK = 32, SUPER = 8 /* blocks */ };

typedef struct {
    size_t high, scales, supers, bytes; /* offsets in a group; bytes of a group */
} kf_layout;

static inline int kf_dense(int format)
{
    return format == KF_F32 || format == KF_F16 || format == KF_BF16;
}

/* Columns that a row must be a multiple of. */
static inline int kf_column_step(int format)
{
    if (kf_dense(format)) return 1;
    return format == KF_Q4_K || format == KF_Q6_K ? BLOCK * SUPER : BLOCK;
}

/* Bytes of one row of `cols` weights as the file stores it; 0 for an unknown format. */
static inline size_t kf_row_bytes(int format, size_t cols)
{
    switch (format) {
    case KF_F32: return cols * 4;
    case KF_F16: case KF_BF16: return cols * 2;
    case KF_Q4_0: return cols / 32 * 18;
    case KF_Q4_1: return cols / 32 * 20;
    case KF_Q8_0: return cols / 32 * 34;
    case KF_Q4_K: return cols / 256 * 144;
    case KF_Q6_K: return cols / 256 * 210;
    default: return 0;
    }
}

static inline kf_layout kf_group_layout(int format, size_t cols)
{
    size_t blocks = cols / BLOCK, codes = 0, high = 0, scales = 0, supers = 0;
    switch (format) {
    case KF_Q4_0: codes = 256, scales = 32; break;               /* d[16] */
    case KF_Q4_1: codes = 256, scales = 64; break;               /* d[16], m[16] */
    case KF_Q8_0: codes = 512, scales = 32; break;               /* d[16] */
    case KF_Q4_K: codes = 256, scales = 32, supers = 64; break;  /* bytes s[16], m[16]; d, dmin */
    case KF_Q6_K: codes = 256, high = 128, scales = 32, supers = 32; break; /* two halves; d[16] */
    default: {
        kf_layout dense = {0, 0, 0, GROUP * kf_row_bytes(format, cols)};
        return dense;
    }
    }
    kf_layout at;
    at.high = blocks * codes;
    at.scales = at.high + blocks * high;
    at.supers = at.scales + blocks * scales;
    at.bytes = (at.supers + blocks / SUPER * supers + 63) / 64 * 64;
    return at;
}

/* A row of activations in two planes of 8-bit codes by blocks of 32, ready for integer dot products:
 * the values rounded to 8 bits, then what that left over, to 8 bits again. As good as 16 bits; with
 * one plane, rounding alone flips close choices of a small model; coarse rows have only that one, and
 * rest is 0. A value is (FINE * codes + rest) * scale, and sums of codes are of FINE * codes + rest. */
enum { FINE_BITS = 8, FINE = 1 << FINE_BITS };

typedef struct {
    int8_t codes[BLOCK], rest[BLOCK];
    float scale, sum;        /* step, and step times the sum of the codes */
    int32_t total, half[2];  /* sum of the codes; of their two halves */
    int32_t unused[3];       /* a row is one pointer, its blocks at constant distances */
} kf_codes;

static inline size_t kf_codes_bytes(size_t cols)
{
    return ((cols / BLOCK * sizeof(kf_codes) + 63) / 64 | 1) * 64; /* odd: see tape.py */
}

#endif
