/* The tiled weight layout, and what every kernel file shares about it.
 *
 * Rows go in groups of 16, columns in blocks of 32. A group is one stream of units, a unit a few
 * blocks with all that a dot product for 16 rows needs of them, so that it reads memory from front to
 * back (processors foresee that; codes and scales as two streams come a third slower):
 *
 *   codes   4 or 8 bits: a 64-byte vector holds 4 columns of each of the 16 rows, row by row;
 *           4-bit vectors j = 0..3 hold columns 4j.. in low and 16 + 4j.. in high nibbles
 *   high    q6_k only: two more bits, vectors 0 and 1 for columns 0..15 and 16..31
 *   scales  16 rows side by side: see the table in kf_unit_of()
 *   supers  q4_k, q6_k: one scale for 8 blocks
 *
 * A unit is as many blocks as fill whole cache lines with scales. In a group whose columns do not
 * fill the last unit, the rest of it is never read.
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

/* Blocks of a unit; bytes of one block's codes, high bits and scales; where high bits, scales and
 * supers begin in a unit; bytes of a unit. */
typedef struct {
    int blocks;
    size_t code, bits, scale;
    size_t high, scales, supers, bytes;
} kf_unit;

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

static inline kf_unit kf_unit_of(int format)
{
    kf_unit u = {1, 256, 0, 32, 0, 0, 0, 0};
    size_t supers = 0;
    switch (format) {
    case KF_Q4_0: u.blocks = 2; break;                                       /* d[16] */
    case KF_Q4_1: u.scale = 64; break;                                       /* d[16], m[16] */
    case KF_Q8_0: u.blocks = 2, u.code = 512; break;                         /* d[16] */
    case KF_Q4_K: u.blocks = SUPER, supers = 64; break;   /* bytes s[16], m[16]; d, dmin */
    default: u.blocks = SUPER, u.bits = 128, supers = 32; /* q6_k: two halves; d[16] */
    }
    u.high = u.blocks * u.code;
    u.scales = u.high + u.blocks * u.bits;
    u.supers = u.scales + u.blocks * u.scale;
    u.bytes = (u.supers + supers + 63) / 64 * 64;
    return u;
}

/* Where the unit of a block begins in its group. */
static inline size_t kf_unit_at(const kf_unit *u, int block) { return block / u->blocks * u->bytes; }

/* Bytes of a group of 16 rows. */
static inline size_t kf_group_bytes(int format, size_t cols)
{
    if (kf_dense(format)) return GROUP * kf_row_bytes(format, cols);
    kf_unit u = kf_unit_of(format);
    return (cols / BLOCK + u.blocks - 1) / u.blocks * u.bytes;
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
