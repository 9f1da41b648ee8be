/* Training kernels for one instruction set: included once by each train_*.c, which names it.
 *
 * Values are bfloat16 where nothing else is said; sums are float32. */
#include "simd.h"
#include "train.h"

typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

INLINE vf load_half(const uint16_t *at) { return (vf)(widen_halves(at) << 16); }
/* Rounded to the nearest, ties to even; what is not a number stays none. */
INLINE void store_half(uint16_t *at, vf v)
{
    vu bits = (vu)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    vu none = (vu)(v != v);
    vh halves = __builtin_convertvector((rounded & ~none) | (none & 0x7fc0), vh);
    memcpy(at, &halves, sizeof halves);
}
/* Of the last, incomplete vector of a row. */
INLINE vf load_halves(const uint16_t *at, int64_t count)
{
    uint16_t lanes[LANES] = {0};
    if (count >= LANES) return load_half(at);
    memcpy(lanes, at, (size_t)count * 2);
    return load_half(lanes);
}
INLINE void store_halves(uint16_t *at, vf v, int64_t count)
{
    uint16_t lanes[LANES];
    if (count >= LANES) {
        store_half(at, v);
        return;
    }
    store_half(lanes, v);
    memcpy(at, lanes, (size_t)count * 2);
}
#define LEFT(n, i) ((n) - (i) < LANES ? (int)((n) - (i)) : LANES)
/* x is bfloat16 or float32. */
INLINE vf load_either(const void *x, int64_t at, int half, int count)
{
    return half ? load_halves((const uint16_t *)x + at, count)
                : load_some((const float *)x + at, count);
}

/* y = x / rms(x) * w. p: x, w (float32), y, 1 / rms (float32). n: width, x is bfloat16. f: eps. */
static void train_norm(const kf_given *g, int64_t first, int64_t end)
{
    int64_t width = g->n[0];
    int half = g->n[1] != 0;
    const float *w = g->p[1];
    for (int64_t t = first; t < end; t++) {
        uint16_t *y = (uint16_t *)g->p[2] + t * width;
        vf sum = {0};
        for (int64_t i = 0; i < width; i += LANES) {
            vf x = load_either(g->p[0], t * width + i, half, LEFT(width, i));
            sum += x * x;
        }
        float r = 1.0f / sqrtf(sum_lanes(sum) / (float)width + g->f[0]);
        ((float *)g->p[3])[t] = r;
        for (int64_t i = 0; i < width; i += LANES) {
            int n = LEFT(width, i);
            vf x = load_either(g->p[0], t * width + i, half, n);
            store_halves(y + i, x * r * load_some(w + i, n), n);
        }
    }
}

/* p: x, w, dy, 1 / rms, dx (as x), dw (blocks, width) float32. n: width, x is bfloat16, rows, rows
 * of a block. Items are blocks; each has its own part of dw. */
static void train_norm_back(const kf_given *g, int64_t first, int64_t end)
{
    int64_t width = g->n[0], rows = g->n[2], each = g->n[3];
    int half = g->n[1] != 0;
    const float *w = g->p[1];
    for (int64_t block = first; block < end; block++) {
        float *dw = (float *)g->p[5] + block * width;
        memset(dw, 0, (size_t)width * sizeof(float));
        int64_t stop = (block + 1) * each < rows ? (block + 1) * each : rows;
        for (int64_t t = block * each; t < stop; t++) {
            const uint16_t *dy = (const uint16_t *)g->p[2] + t * width;
            float r = ((const float *)g->p[3])[t];
            vf sum = {0};
            for (int64_t i = 0; i < width; i += LANES) {
                int n = LEFT(width, i);
                vf normed = load_either(g->p[0], t * width + i, half, n) * r;
                vf slope = load_halves(dy + i, n);
                sum += slope * load_some(w + i, n) * normed;
                store_some(dw + i, load_some(dw + i, n) + slope * normed, n);
            }
            float mean = sum_lanes(sum) / (float)width;
            for (int64_t i = 0; i < width; i += LANES) {
                int n = LEFT(width, i);
                vf normed = load_either(g->p[0], t * width + i, half, n) * r;
                vf dx = r * (load_halves(dy + i, n) * load_some(w + i, n) - normed * mean);
                if (half) store_halves((uint16_t *)g->p[4] + t * width + i, dx, n);
                else store_some((float *)g->p[4] + t * width + i, dx, n);
            }
        }
    }
}

/* y = silu(gate) * up. p: gate and up side by side, y. n: hidden. */
static void train_gate(const kf_given *g, int64_t first, int64_t end)
{
    int64_t hidden = g->n[0];
    for (int64_t t = first; t < end; t++) {
        const uint16_t *gate = (const uint16_t *)g->p[0] + 2 * t * hidden, *up = gate + hidden;
        uint16_t *y = (uint16_t *)g->p[1] + t * hidden;
        for (int64_t i = 0; i < hidden; i += LANES) {
            int n = LEFT(hidden, i);
            vf x = load_halves(gate + i, n);
            store_halves(y + i, x * sigmoid(x) * load_halves(up + i, n), n);
        }
    }
}

/* p: gate and up, dy, d(gate and up). n: hidden. */
static void train_gate_back(const kf_given *g, int64_t first, int64_t end)
{
    int64_t hidden = g->n[0];
    for (int64_t t = first; t < end; t++) {
        const uint16_t *gate = (const uint16_t *)g->p[0] + 2 * t * hidden, *up = gate + hidden;
        const uint16_t *dy = (const uint16_t *)g->p[1] + t * hidden;
        uint16_t *to = (uint16_t *)g->p[2] + 2 * t * hidden;
        for (int64_t i = 0; i < hidden; i += LANES) {
            int n = LEFT(hidden, i);
            vf x = load_halves(gate + i, n), s = sigmoid(x), slope = load_halves(dy + i, n);
            vf by_gate = s * (1.0f + x * (1.0f - s));
            store_halves(to + i, slope * load_halves(up + i, n) * by_gate, n);
            store_halves(to + hidden + i, slope * x * s, n);
        }
    }
}

/* Dimension i turns with i + half by an angle. p: x, cos, sin (rows, half) float32, y (rows, heads,
 * width). n: heads, width, half, numbers between two rows of x. f: 1, or -1 to turn back. */
static void train_turn(const kf_given *g, int64_t first, int64_t end)
{
    int64_t heads = g->n[0], width = g->n[1], half = g->n[2];
    for (int64_t t = first; t < end; t++) {
        const float *cos = (const float *)g->p[1] + t * half;
        const float *sin = (const float *)g->p[2] + t * half;
        for (int64_t h = 0; h < heads; h++) {
            const uint16_t *x = (const uint16_t *)g->p[0] + t * g->n[3] + h * width;
            uint16_t *y = (uint16_t *)g->p[3] + (t * heads + h) * width;
            for (int64_t i = 0; i < half; i += LANES) {
                int n = LEFT(half, i);
                vf a = load_halves(x + i, n), b = load_halves(x + half + i, n);
                vf c = load_some(cos + i, n), s = load_some(sin + i, n) * g->f[0];
                store_halves(y + i, a * c - b * s, n);
                store_halves(y + half + i, b * c + a * s, n);
            }
            memcpy(y + 2 * half, x + 2 * half, (size_t)(width - 2 * half) * 2);
        }
    }
}

/* Scores become shares in place: row i sees the first i % queries + 1 keys. p: scores. n: queries,
 * keys. f: scale. */
static void train_softmax(const kf_given *g, int64_t first, int64_t end)
{
    int64_t queries = g->n[0], keys = g->n[1];
    float wide[KF_WIDEST];
    for (int64_t row = first; row < end; row++) {
        uint16_t *x = (uint16_t *)g->p[0] + row * keys;
        int64_t seen = row % queries + 1;
        vf most = splat(-INFINITY), sum = {0};
        for (int64_t i = 0; i < seen; i += LANES) {
            vf v = load_halves(x + i, LEFT(seen, i)) * g->f[0];
            for (int k = LEFT(seen, i); k < LANES; k++) v[k] = -INFINITY;
            store(wide + i, v);
            most = larger(most, v);
        }
        float top = max_lanes(most);
        for (int64_t i = 0; i < seen; i += LANES) {
            vf v = exponential(load(wide + i) - top);
            for (int k = LEFT(seen, i); k < LANES; k++) v[k] = 0;
            store(wide + i, v);
            sum += v;
        }
        float share = 1.0f / sum_lanes(sum);
        for (int64_t i = 0; i < seen; i += LANES)
            store_halves(x + i, load(wide + i) * share, LEFT(seen, i));
        memset(x + seen, 0, (size_t)(keys - seen) * 2);
    }
}

/* p: shares, their slopes, which become those of the scores. n: queries, keys. f: scale. */
static void train_softmax_back(const kf_given *g, int64_t first, int64_t end)
{
    int64_t queries = g->n[0], keys = g->n[1];
    for (int64_t row = first; row < end; row++) {
        const uint16_t *shares = (const uint16_t *)g->p[0] + row * keys;
        uint16_t *slopes = (uint16_t *)g->p[1] + row * keys;
        int64_t seen = row % queries + 1;
        vf sum = {0};
        for (int64_t i = 0; i < seen; i += LANES)
            sum += load_halves(shares + i, LEFT(seen, i)) * load_halves(slopes + i, LEFT(seen, i));
        float mean = sum_lanes(sum);
        for (int64_t i = 0; i < seen; i += LANES) {
            int n = LEFT(seen, i);
            vf p = load_halves(shares + i, n) * g->f[0];
            store_halves(slopes + i, p * (load_halves(slopes + i, n) - mean), n);
        }
        memset(slopes + seen, 0, (size_t)(keys - seen) * 2);
    }
}

/* Cross-entropy of a row of logits against its label, which is below 0 where the row does not
 * count; the logits become their slopes. p: logits, labels (int64), told (rows, 3) float32: loss
 * with z's part, z's part, 1 where the label is the first of the highest. n: classes. f: what is
 * smoothed, weight of log(Z)^2. */
static void train_entropy(const kf_given *g, int64_t first, int64_t end)
{
    int64_t classes = g->n[0];
    float even = g->f[0] / (float)classes;
    for (int64_t row = first; row < end; row++) {
        uint16_t *x = (uint16_t *)g->p[0] + row * classes;
        float *told = (float *)g->p[2] + 3 * row;
        int64_t label = ((const int64_t *)g->p[1])[row], before = 0;
        told[0] = told[1] = told[2] = 0;
        if (label < 0 || label >= classes) {
            memset(x, 0, (size_t)classes * 2);
            continue;
        }
        vf most = splat(-INFINITY), sum = {0}, all = {0};
        for (int64_t i = 0; i < classes; i += LANES) {
            vf v = load_halves(x + i, LEFT(classes, i));
            all += v;
            for (int k = LEFT(classes, i); k < LANES; k++) v[k] = -INFINITY;
            most = larger(most, v);
        }
        float top = max_lanes(most), own = from_bf16(x[label]);
        while (before < label && from_bf16(x[before]) != top) before++;
        told[2] = own == top && before == label;
        for (int64_t i = 0; i < classes; i += LANES) {
            vf v = exponential(load_halves(x + i, LEFT(classes, i)) - top);
            for (int k = LEFT(classes, i); k < LANES; k++) v[k] = 0;
            sum += v;
        }
        float size = sum_lanes(sum), log_z = top + logf(size), z = g->f[1] * log_z;
        told[1] = z * log_z;
        told[0] = log_z - (1 - g->f[0]) * own - even * sum_lanes(all) + told[1];
        float share = (1 + 2 * z) / size;
        for (int64_t i = 0; i < classes; i += LANES) {
            vf v = exponential(load_halves(x + i, LEFT(classes, i)) - top) * share - even;
            int at = (int)(label - i);
            if (at >= 0 && at < LANES) v[at] -= 1 - g->f[0];
            store_halves(x + i, v, LEFT(classes, i));
        }
    }
}

const kf_train_kernels KF_TABLE = {{train_norm, train_norm_back, train_gate, train_gate_back,
                                    train_turn, train_softmax, train_softmax_back, train_entropy}};
