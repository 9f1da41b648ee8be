/* Choosing one token of a row of logits: the likeliest, or one drawn of those that are kept.
 *
 * A draw is a race (the exponential form of the Gumbel trick): token i ends at E_i / w_i, where w_i
 * is its weight and E_i, exponentially distributed, a hash of seed, place and i; the first to end
 * is chosen. What is kept are the tokens from some logit up: a threshold, found by halving. */
#ifndef KF_DRAW_H
#define KF_DRAW_H

#include <float.h>

#include "ops.h"
#include "simd.h"

/* Some logits: a whole row, or those of it that lie near the highest one, with their ids. */
typedef struct { const float *at; const int32_t *ids; int64_t count; } logits_of;

/* The tail of a row is filled up with what is never kept. */
INLINE vf load_logits(const logits_of *row, int64_t i)
{
    float lanes[LANES];
    if (i + LANES <= row->count) return load(row->at + i);
    for (int k = 0; k < LANES; k++) lanes[k] = i + k < row->count ? row->at[i + k] : -INFINITY;
    return load(lanes);
}
INLINE int any(vi mask) { return sum_whole(mask) != 0; }
INLINE vf weights(vf x, float top, float scale) { return exponential((x - top) * scale); }

/* The highest of a row; *numbers is 0 if one of them is not a number. */
static float highest(const logits_of *row, int *numbers)
{
    vf top = splat(-INFINITY);
    vi wrong = {0};
    for (int64_t i = 0; i < row->count; i += LANES) {
        vf x = load_logits(row, i);
        wrong |= x != x;
        top = larger(top, x);
    }
    *numbers = !any(wrong);
    return max_lanes(top);
}

static int32_t first_at(const logits_of *row, float value)
{
    for (int64_t i = 0; i < row->count; i += LANES) {
        if (!any(load_logits(row, i) == value)) continue;
        for (int64_t k = i;; k++)
            if (row->at[k] == value) return row->ids ? row->ids[k] : (int32_t)k;
    }
    return -1;
}

/* How many lie from `cut` up (scale 0), or what they weigh together. */
static double amount(const logits_of *row, float cut, float top, float scale)
{
    vf sum = {0}, one = splat(1.0f);
    double whole = 0;
    for (int64_t i = 0; i < row->count;) {
        int64_t end = i + 64 * LANES < row->count ? i + 64 * LANES : row->count;
        for (; i < end; i += LANES) {
            vf x = load_logits(row, i);
            sum += (vf)((vi)(scale ? weights(x, top, scale) : one) & (x >= cut));
        }
        whole += sum_lanes(sum); /* short sums: a count stays exact, a mass nearly so */
        sum = (vf){0};
    }
    return whole;
}

/* Floats in their order as whole numbers, and back. */
INLINE int32_t rank_of(float x)
{
    int32_t bits = (int32_t)float_bits(x);
    return bits ^ (bits >> 31 & 0x7fffffff);
}
INLINE float at_rank(int32_t rank) { return bits_float((uint32_t)(rank ^ (rank >> 31 & 0x7fffffff))); }

/* The highest value from which on there is as much as `wanted`; at `low` there is. */
static float threshold(const logits_of *row, float low, float top, float scale, double wanted)
{
    int64_t below = rank_of(low), above = rank_of(top);
    while (below < above) {
        int64_t middle = below + (above - below + 1) / 2;
        if (amount(row, at_rank((int32_t)middle), top, scale) >= wanted) below = middle;
        else above = middle - 1;
    }
    return at_rank((int32_t)below);
}

enum { KF_NEAR = 8192 };

/* The logits from `cut` up, KF_NEAR at most; returns how many there are, or -1 for too many. */
static int64_t gather(const logits_of *row, float cut, float *near, int32_t *ids)
{
    int64_t found = 0;
    for (int64_t i = 0; i < row->count; i += LANES) {
        if (!any(load_logits(row, i) >= cut)) continue;
        for (int64_t k = i; k < i + LANES && k < row->count; k++) {
            if (!(row->at[k] >= cut)) continue;
            if (found == KF_NEAR) return -1;
            near[found] = row->at[k], ids[found++] = row->ids ? row->ids[k] : (int32_t)k;
        }
    }
    return found;
}

INLINE uint64_t mixed(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}
#define SCRAMBLE(h) \
    (h ^= h >> 16, h *= 0x7feb352du, h ^= h >> 15, h *= 0x846ca68bu, h ^= h >> 16)
#define HASH(h, key) \
    (h = h * 0x9e3779b1u ^ (uint32_t)(key), SCRAMBLE(h), h += (uint32_t)((key) >> 32), SCRAMBLE(h))

/* Who of those from `cut` up ends first. */
static int32_t race(const logits_of *row, float cut, float top, float scale, uint64_t key)
{
    vi steps;
    for (int k = 0; k < LANES; k++) steps[k] = k;
    double best = INFINITY;
    int32_t token = -1;
    for (int64_t i = 0; i < row->count; i += LANES) {
        vf x = load_logits(row, i);
        vi in = x >= cut;
        if (!any(in)) continue;
        int32_t ids[LANES];
        vi id = steps + (int32_t)i;
        if (row->ids) {
            for (int k = 0; k < LANES; k++) id[k] = i + k < row->count ? row->ids[i + k] : 0;
        }
        memcpy(ids, &id, sizeof ids);
        vu h = (vu)id;
        HASH(h, key);
        /* E is no less than its uniform number: most tokens lose without a logarithm. */
        vf least = __builtin_convertvector(h, vf) * 0x1p-32f;
        vf most = weights(x, top, scale) * (float)(best < 1e30 ? best * 1.0001 : 1e30);
        in &= least <= most;
        if (!any(in)) continue;
        for (int k = 0; k < LANES; k++) {
            if (!in[k]) continue;
            double u = ((double)h[k] + 0.5) * 0x1p-32;
            double end = -log1p(-u) / exp(((double)x[k] - top) * scale);
            if (end < best) best = end, token = ids[k];
        }
    }
    return token;
}

/* The chosen token's id; -1 if all logits are minus infinity, -2 if one is not a number. */
static int32_t draw(const kf_choice *ask)
{
    float near[KF_NEAR];
    int32_t ids[KF_NEAR];
    logits_of whole = {ask->logits, ask->ids, ask->count}, some = {near, ids, 0};
    int numbers;
    float top = highest(&whole, &numbers);
    if (!numbers) return -2;
    if (top == -INFINITY) return -1;
    if (ask->temperature == 0.0f || top == INFINITY) return first_at(&whole, top);
    float scale = 1.0f / ask->temperature, cut = -FLT_MAX;
    int most = ask->top_k > 0 && ask->top_k < ask->count;
    double mass = 0;
    if (!most && ask->top_p < 1.0f) mass = ask->top_p * amount(&whole, cut, top, scale);
    const logits_of *row = &whole;
    for (float band = 4.0f; (most || ask->top_p < 1.0f) && band <= 32.0f; band *= 2.0f) {
        float low = top - band * ask->temperature;
        some.count = gather(&whole, low, near, ids);
        if (some.count < 0) break;
        if (most ? some.count < ask->top_k : amount(&some, low, top, scale) < mass) continue;
        row = &some, cut = low;
        break;
    }
    if (most) {
        cut = threshold(row, cut, top, 0.0f, ask->top_k);
        mass = ask->top_p * amount(row, cut, top, scale);
    }
    if (ask->top_p < 1.0f) cut = threshold(row, cut, top, scale, mass);
    if (ask->min_p > 0.0f) cut = fmaxf(cut, fminf(top, top + ask->temperature * logf(ask->min_p)));
    return race(row, cut, top, scale, mixed(ask->seed + 0x9e3779b97f4a7c15u * (ask->place + 1)));
}

#endif
