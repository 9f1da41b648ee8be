/* Between a file's rows of blocks and tiled groups: repacking at load, decoding for wide steps. */
#include "pool.h"

#include <stdlib.h>
#include <string.h>

const kf_isa *kf_kernels(void);

static uint32_t four(const uint8_t *at)
{
    uint32_t bits;
    memcpy(&bits, at, 4);
    return bits;
}

static void put_four(uint8_t *at, uint32_t bits) { memcpy(at, &bits, 4); }

/* 16 bytes that hold columns 0..15 in low and 16..31 in high nibbles, as q4_0 and q4_1 do. */
static void pack_q4(const uint8_t *row, int blocks, int lane, uint8_t *group, int both)
{
    kf_unit u = kf_unit_of(both ? KF_Q4_1 : KF_Q4_0);
    int head = both ? 4 : 2;
    for (int b = 0; b < blocks; b++, row += head + 16) {
        uint8_t *unit = group + kf_unit_at(&u, b), *codes = unit + b % u.blocks * u.code;
        uint8_t *scales = unit + u.scales + b % u.blocks * u.scale + 2 * lane;
        memcpy(scales, row, 2);
        if (both) memcpy(scales + 32, row + 2, 2);
        for (int j = 0; j < 4; j++)
            put_four(codes + 64 * j + 4 * lane, four(row + head + 4 * j));
    }
}

static void pack_q8(const uint8_t *row, int blocks, int lane, uint8_t *group)
{
    kf_unit u = kf_unit_of(KF_Q8_0);
    for (int b = 0; b < blocks; b++, row += 34) {
        uint8_t *unit = group + kf_unit_at(&u, b), *codes = unit + b % u.blocks * u.code;
        memcpy(unit + u.scales + b % u.blocks * u.scale + 2 * lane, row, 2);
        for (int j = 0; j < 8; j++) /* + 128: dot products take unsigned weights */
            put_four(codes + 64 * j + 4 * lane, four(row + 2 + 4 * j) ^ 0x80808080u);
    }
}

/* The 6-bit scale and minimum of block j of 8, from q4_k's 12 bytes. */
static void scale_q4k(const uint8_t *s, int j, uint8_t *scale, uint8_t *low)
{
    if (j < 4) {
        *scale = s[j] & 63, *low = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
        *low = s[j + 4] >> 4 | s[j] >> 6 << 4;
    }
}

/* d, dmin, 12 bytes of scales, 4 runs of 32 bytes: one block in low nibbles, the next in high. */
static void pack_q4k(const uint8_t *row, int blocks, int lane, uint8_t *group)
{
    kf_unit u = kf_unit_of(KF_Q4_K);
    for (int b = 0; b < blocks; b++) {
        const uint8_t *super = row + (size_t)(b / SUPER) * 144, *run = super + 16 + b % SUPER / 2 * 32;
        uint8_t *unit = group + kf_unit_at(&u, b), *codes = unit + b % u.blocks * u.code;
        uint8_t *scales = unit + u.scales + b % u.blocks * u.scale + lane;
        scale_q4k(super + 4, b % SUPER, scales, scales + 16);
        if (b % SUPER == 0) {
            uint8_t *whole = unit + u.supers + 2 * lane;
            memcpy(whole, super, 2), memcpy(whole + 32, super + 2, 2);
        }
        for (int j = 0; j < 4; j++) {
            uint32_t early = four(run + 4 * j), late = four(run + 16 + 4 * j);
            uint32_t low = b % 2 ? early >> 4 & 0x0f0f0f0fu : early & 0x0f0f0f0fu;
            uint32_t high = b % 2 ? late & 0xf0f0f0f0u : (late & 0x0f0f0f0fu) << 4;
            put_four(codes + 64 * j + 4 * lane, low | high);
        }
    }
}

/* 128 bytes of low nibbles, 64 of high bits, 16 scales, d. Half h of 128 values: value i has its
 * nibble at byte 64h + i % 64 (low for i < 64) and its bits at 32h + i % 32, field i / 32. */
static void pack_q6k(const uint8_t *row, int blocks, int lane, uint8_t *group)
{
    kf_unit u = kf_unit_of(KF_Q6_K);
    for (int b = 0; b < blocks; b++) {
        const uint8_t *super = row + (size_t)(b / SUPER) * 210;
        int half = b % SUPER / 4, field = b % 4;
        const uint8_t *low = super + 64 * half + field % 2 * 32, *high = super + 128 + 32 * half;
        uint8_t *unit = group + kf_unit_at(&u, b), *codes = unit + b % u.blocks * u.code;
        uint8_t *scales = unit + u.scales + b % u.blocks * u.scale + lane;
        scales[0] = super[192 + b % SUPER * 2], scales[16] = super[193 + b % SUPER * 2];
        if (b % SUPER == 0)
            memcpy(unit + u.supers + 2 * lane, super + 208, 2);
        uint32_t bits[2] = {0, 0};
        for (int j = 0; j < 4; j++) {
            uint32_t early = four(low + 4 * j) >> field / 2 * 4 & 0x0f0f0f0fu;
            uint32_t late = four(low + 16 + 4 * j) >> field / 2 * 4 & 0x0f0f0f0fu;
            put_four(codes + 64 * j + 4 * lane, early | late << 4);
            bits[0] |= (four(high + 4 * j) >> 2 * field & 0x03030303u) << 2 * j;
            bits[1] |= (four(high + 16 + 4 * j) >> 2 * field & 0x03030303u) << 2 * j;
        }
        for (int h = 0; h < 2; h++)
            put_four(unit + u.high + b % u.blocks * u.bits + 64 * h + 4 * lane, bits[h]);
    }
}

typedef struct {
    int32_t format, rows, cols;
    const uint8_t *source;
    const int32_t *order;
    uint8_t *packed;
    const uint8_t *tiled;
    void *out;
    int32_t floats;
} conversion;

static void pack_groups(void *argument, const kf_worker *worker)
{
    const conversion *c = argument;
    size_t each = kf_group_bytes(c->format, c->cols), bytes = kf_row_bytes(c->format, c->cols);
    int64_t first, last, groups = (c->rows + GROUP - 1) / GROUP;
    kf_share(groups, worker, &first, &last);
    for (int64_t g = first; g < last; g++) {
        uint8_t *group = c->packed + g * each;
        if ((g + 1) * GROUP > c->rows) memset(group, 0, each);
        for (int lane = 0; lane < GROUP && g * GROUP + lane < c->rows; lane++) {
            int64_t row = g * GROUP + lane;
            const uint8_t *from = c->source + (c->order ? c->order[row] : row) * bytes;
            int blocks = c->cols / BLOCK;
            switch (c->format) {
            case KF_Q4_0: pack_q4(from, blocks, lane, group, 0); break;
            case KF_Q4_1: pack_q4(from, blocks, lane, group, 1); break;
            case KF_Q8_0: pack_q8(from, blocks, lane, group); break;
            case KF_Q4_K: pack_q4k(from, blocks, lane, group); break;
            default: pack_q6k(from, blocks, lane, group);
            }
        }
    }
}

static void unpack_groups(void *argument, const kf_worker *worker)
{
    const conversion *c = argument;
    size_t bytes = kf_group_bytes(c->format, c->cols), cols = c->cols;
    int64_t first, last, groups = (c->rows + GROUP - 1) / GROUP;
    kf_share(groups, worker, &first, &last);
    for (int64_t g = first; g < last; g++) {
        int valid = c->rows - g * GROUP < GROUP ? c->rows - g * GROUP : GROUP;
        size_t start = g * GROUP * cols;
        float *to = c->floats ? (float *)c->out + start : worker->scratch;
        kf_kernels()->unpack(c->format, c->tiled + g * bytes, c->cols, 0, valid, to, cols);
        if (!c->floats) kf_kernels()->narrow(to, (uint16_t *)c->out + start, valid * cols);
    }
}

/* Bytes of a matrix once tiled; 0 where the format is unknown or the columns do not fit it. */
int64_t kf_tiled_bytes(int format, int64_t rows, int64_t cols)
{
    if (!kf_row_bytes(format, cols) || cols % kf_column_step(format)) return 0;
    return (rows + GROUP - 1) / GROUP * (int64_t)kf_group_bytes(format, cols);
}

/* Rows as the file stores them (row order[i] first, where an order is given) -> tiled groups. */
int kf_pack(int format, const void *source, const int32_t *order, int rows, int cols, void *packed)
{
    conversion c = {format, rows, cols, source, order, packed, NULL, NULL, 0};
    return kf_together(pack_groups, &c, 0);
}

/* Tiled groups (or dense rows) -> (rows, cols) of float32 or bfloat16. */
int kf_unpack(int format, const void *tiled, int rows, int cols, void *out, int floats)
{
    conversion c = {format, rows, cols, NULL, NULL, NULL, tiled, out, floats};
    return kf_together(unpack_groups, &c, (size_t)GROUP * cols);
}
