/* Products with weights: 8-bit dot products on tiled formats, float32 on dense and decoded ones.
 *
 * A row's result never depends on the other rows of the batch: each kernel keeps one sum a row and
 * adds to it in one order, however many rows share the unpacked weights. */

/* The 8 vectors of a block's codes (columns 4j..4j+3), for rows `part`.. of the group. */
INLINE void codes_4(const uint8_t *block, vu w[8])
{
    for (int j = 0; j < 4; j++) {
        vu packed = load_bits(block + 64 * j);
        w[j] = packed & 0x0f0f0f0f;
        w[j + 4] = packed >> 4 & 0x0f0f0f0f;
    }
}

INLINE void codes_6(const uint8_t *block, const uint8_t *high, vu w[8])
{
    codes_4(block, w);
    vu h0 = load_bits(high), h1 = load_bits(high + 64);
    for (int j = 0; j < 4; j++) {
        w[j] |= (h0 >> 2 * j & 0x03030303) << 4;
        w[j + 4] |= (h1 >> 2 * j & 0x03030303) << 4;
    }
}

INLINE void codes_8(const uint8_t *block, vu w[8])
{
    for (int j = 0; j < 8; j++) w[j] = load_bits(block + 64 * j);
}

/* dot4, where weights use all 8 bits the one that cannot overflow. */
INLINE vi dot_four(const int format, vi acc, vu w, const int8_t *codes)
{
    if (format == KF_Q8_0) return dot4_wide(acc, w, (const quad *)codes);
    return dot4(acc, w, (const quad *)codes);
}

enum { FETCHED = 4352 /* bytes ahead */ };

/* R rows of codes times LANES rows of a group; `part` is the first of those rows. */
INLINE void dot_group(const int format, const int R, const int planes, const uint8_t *group,
                      int blocks, int part, const uint8_t *x, size_t stride, vf *out)
{
    const kf_unit u = kf_unit_of(format);
    vf sums[8], d = {0}, m = {0}, step = {0}, low = {0};
    for (int r = 0; r < R; r++) sums[r] = (vf){0};
    for (int b = 0; b < blocks; b++) {
        const uint8_t *unit = group + kf_unit_at(&u, b);
        const uint8_t *codes = unit + b % u.blocks * u.code + 4 * part;
        const uint8_t *high = unit + u.high + b % u.blocks * u.bits + 4 * part;
        const uint8_t *scales = unit + u.scales + b % u.blocks * u.scale;
        vu w[8];
        if (R > 2 && part == 0) /* so slow a stream is not foreseen in time */
            for (size_t i = 0; i < u.code + u.bits + u.scale; i += 64)
                __builtin_prefetch(codes + FETCHED + i, 0, 2);
        if (format == KF_Q8_0) codes_8(codes, w);
        else if (format == KF_Q6_K) codes_6(codes, high, w);
        else codes_4(codes, w);
        if (format == KF_Q4_K || format == KF_Q6_K) {
            const uint16_t *super = (const uint16_t *)(unit + u.supers);
            const uint8_t *s = scales + part;
            if (b % SUPER == 0) d = half_to_float(super + part);
            if (b % SUPER == 0 && format == KF_Q4_K) m = half_to_float(super + 16 + part);
            if (format == KF_Q4_K) step = d * from_int(widen_bytes(s)), low = -m * from_int(widen_bytes(s + 16));
            else step = d * from_int(widen_signed((const int8_t *)s)),
                 low = d * from_int(widen_signed((const int8_t *)s + 16));
        } else {
            const uint16_t *s = (const uint16_t *)scales;
            step = half_to_float(s + part);
            if (format == KF_Q4_1) low = half_to_float(s + 16 + part);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const kf_codes *block = (const kf_codes *)(x + r * stride) + b;
            const int8_t *q = block->codes, *rest = block->rest;
            vi dot[2] = {{0}, {0}}, fine[2] = {{0}, {0}}; /* separate: a chain of sums would wait */
            const int halves = format == KF_Q6_K ? 2 : 1; /* with a scale each */
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) {
                int h = halves == 2 ? j / 4 : 0;
                dot[h] = dot_four(format, dot[h], w[j], q + 4 * j);
                if (planes == 2) fine[h] = dot_four(format, fine[h], w[j], rest + 4 * j);
            }
            for (int h = 0; h < halves; h++) dot[h] = (dot[h] << FINE_BITS) + fine[h];
            if (format == KF_Q6_K) {
                sums[r] += from_int(dot[0] - 32 * block->half[0]) * (step * block->scale);
                sums[r] += from_int(dot[1] - 32 * block->half[1]) * (low * block->scale);
                continue;
            }
            int centre = format == KF_Q8_0 ? -128 : format == KF_Q4_0 ? -8 : 0;
            if (centre) dot[0] += centre * block->total;
            sums[r] += from_int(dot[0]) * (step * block->scale);
            if (format == KF_Q4_1 || format == KF_Q4_K) sums[r] += low * block->sum;
        }
    }
    for (int r = 0; r < R; r++) out[r] = sums[r];
}

typedef void (*dot_kernel)(const uint8_t *, int, int, const uint8_t *, size_t, vf *);

#define DOT(format, R, planes)                                                                   \
    static void dot_##format##_##R##_##planes(const uint8_t *group, int blocks, int part,             \
                                              const uint8_t *x, size_t stride, vf *out)          \
    {                                                                                            \
        dot_group(KF_##format, R, planes, group, blocks, part, x, stride, out);              \
    }
#define DOTS(format) DOT(format, 1, 2) DOT(format, 2, 2) DOT(format, 4, 2) DOT(format, 8, 2)     \
    DOT(format, 8, 1)
DOTS(Q4_0) DOTS(Q4_1) DOTS(Q8_0) DOTS(Q4_K) DOTS(Q6_K)

enum { ROWS_8 = 3, COARSE_8 = 4 };

/* Kernels for 1, 2, 4 and 8 rows, and for 8 coarse ones. */
static const dot_kernel *dots(int format)
{
#define ROW(format) {dot_##format##_1_2, dot_##format##_2_2, dot_##format##_4_2,                 \
                     dot_##format##_8_2, dot_##format##_8_1}
    static const dot_kernel table[5][5] = {ROW(Q4_0), ROW(Q4_1), ROW(Q8_0), ROW(Q4_K), ROW(Q6_K)};
#undef ROW
    switch (format) {
    case KF_Q4_0: return table[0];
    case KF_Q4_1: return table[1];
    case KF_Q8_0: return table[2];
    case KF_Q4_K: return table[3];
    default: return table[4];
    }
}

/* Put a value where it goes: bias and what is there already are added here. */
INLINE void put(const kf_op *op, int row, int column, float value)
{
    float *at = op->out + row * op->out_stride + column;
    if (op->bias) value += op->bias[column];
    *at = op->flags & KF_ADD ? *at + value : value;
}

/* The first `count` lanes of a vector, or all. */
INLINE void put_lanes(const kf_op *op, int row, int column, int count, vf value)
{
    if (count < LANES) {
        float lanes[LANES];
        store(lanes, value);
        for (int l = 0; l < count; l++) put(op, row, column + l, lanes[l]);
        return;
    }
    float *at = op->out + row * op->out_stride + column;
    if (op->bias) value += load(op->bias + column);
    store(at, op->flags & KF_ADD ? load(at) + value : value);
}

static int all_coarse(const kf_op *op, const kf_step *step, int row)
{
    for (int r = row; r < row + 8; r++)
        if (!kf_coarse(op, step, r)) return 0;
    return 1;
}

static void tiled(const kf_op *op, const kf_step *step, const kf_segment *s, int rows, int first,
                  int last)
{
    const dot_kernel *kernels = dots(s->format);
    size_t stride = kf_codes_bytes(op->width), from = s->from / BLOCK * sizeof(kf_codes);
    for (int group = first; group < last; group++) {
        const uint8_t *data = s->data + (size_t)group * s->group_bytes;
        int valid = s->rows - group * GROUP;
        for (int row = 0; row < rows;) {
            int size = rows - row >= 8 ? ROWS_8 : rows - row >= 4 ? 2 : rows - row >= 2 ? 1 : 0;
            int which = size == ROWS_8 && all_coarse(op, step, row) ? COARSE_8 : size;
            const uint8_t *x = op->codes + row * stride + from;
            for (int part = 0; part < GROUP && part < valid; part += LANES) {
                vf sums[8];
                kernels[which](data, s->cols / BLOCK, part, x, stride, sums);
                for (int r = 0; r < 1 << size; r++)
                    put_lanes(op, row + r, s->first + group * GROUP + part, valid - part, sums[r]);
            }
            row += 1 << size;
        }
    }
}

INLINE vf load_dense(const int format, const uint8_t *row, int i)
{
    if (format == KF_F32) return load((const float *)row + i);
    if (format == KF_F16) return half_to_float((const uint16_t *)row + i);
    return (vf)(widen_halves((const uint16_t *)row + i) << 16);
}

INLINE float dense_at(const int format, const uint8_t *row, int i)
{
    if (format == KF_F32) return ((const float *)row)[i];
    uint16_t h = ((const uint16_t *)row)[i];
    return format == KF_F16 ? from_half(h) : from_bf16(h);
}

/* K weight rows times R activations in float32. */
INLINE void dot_dense(const int format, const int K, const int R, const uint8_t *data, size_t bytes,
                      int cols, const float *x, int64_t stride, float out[4][4])
{
    vf sums[4][4];
    int whole = cols / LANES * LANES;
    for (int k = 0; k < K; k++)
        for (int r = 0; r < R; r++) sums[k][r] = (vf){0};
    for (int i = 0; i < whole; i += LANES) {
        /* A lone row is one stream: what is fetched ahead is the rows after it. */
        if (K == 1) __builtin_prefetch(data + i * (format == KF_F32 ? 4 : 2) + 4096);
        else
            for (int k = 0; k < K; k++)
                __builtin_prefetch(data + (K + k) * bytes + i * (format == KF_F32 ? 4 : 2));
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            vf v = load(x + r * stride + i);
#pragma GCC unroll 4
            for (int k = 0; k < K; k++) sums[k][r] += load_dense(format, data + k * bytes, i) * v;
        }
    }
    for (int k = 0; k < K; k++) {
        for (int r = 0; r < R; r++) {
            float tail = 0;
            for (int i = whole; i < cols; i++)
                tail += dense_at(format, data + k * bytes, i) * x[r * stride + i];
            out[k][r] = sum_lanes(sums[k][r]) + tail;
        }
    }
}

#define DENSE(format, K, R)                                                                      \
    static void dense_##format##_##K##_##R(const uint8_t *data, size_t bytes, int cols,          \
                                           const float *x, int64_t stride, float out[4][4])      \
    {                                                                                            \
        dot_dense(KF_##format, K, R, data, bytes, cols, x, stride, out);                         \
    }
#define DENSES(format) DENSE(format, 1, 1) DENSE(format, 1, 4) DENSE(format, 4, 1) DENSE(format, 4, 4)
DENSES(F32) DENSES(F16) DENSES(BF16)

typedef void (*dense_kernel)(const uint8_t *, size_t, int, const float *, int64_t, float[4][4]);

static dense_kernel dense(int format, int four_rows, int four_activations)
{
#define ROW(format)                                                                              \
    {{dense_##format##_1_1, dense_##format##_1_4}, {dense_##format##_4_1, dense_##format##_4_4}}
    static const dense_kernel table[3][2][2] = {ROW(F32), ROW(F16), ROW(BF16)};
#undef ROW
    int which = format == KF_F32 ? 0 : format == KF_F16 ? 1 : 2;
    return table[which][four_rows][four_activations];
}

/* `count` weight rows that begin at output column `first`. */
static void dense_rows(const kf_op *op, const kf_segment *s, int format, const uint8_t *data,
                       int first, int count, int rows)
{
    int cols = s->cols;
    size_t bytes = kf_row_bytes(format, cols);
    const float *in = op->in + s->from;
    for (int k = 0; k < count;) {
        int wide = rows > 1 && count - k >= 4;
        for (int row = 0; row < rows;) {
            int many = rows - row >= 4;
            float out[4][4];
            dense(format, wide, many)(data + k * bytes, bytes, cols,
                                      in + row * op->in_stride, op->in_stride, out);
            for (int i = 0; i < (wide ? 4 : 1); i++)
                for (int r = 0; r < (many ? 4 : 1); r++)
                    put(op, row + r, first + k + i, out[i][r]);
            row += many ? 4 : 1;
        }
        k += wide ? 4 : 1;
    }
}

/* Groups [first, last) of segment `s`. */
static void linear_groups(const kf_op *op, const kf_step *step, const kf_segment *s, int64_t first,
                          int64_t last, float *scratch)
{
    int rows = kf_rows(op, step);
    int64_t size = s->group_bytes, end = last * GROUP < s->rows ? last * GROUP : s->rows;
    if (kf_dense(s->format)) {
        dense_rows(op, s, s->format, s->data + first * size, s->first + first * GROUP,
                   (int)(end - first * GROUP), rows);
    } else if (op->flags & KF_EXACT) {
        for (int64_t g = first; g < last; g++) {
            int valid = s->rows - g * GROUP < GROUP ? s->rows - g * GROUP : GROUP;
            unpack(s->format, s->data + g * size, s->cols, 0, valid, scratch, s->cols);
            dense_rows(op, s, KF_F32, (const uint8_t *)scratch, s->first + g * GROUP, valid, rows);
        }
    } else {
        tiled(op, step, s, rows, first, last);
    }
}

enum { PIECES = 8 /* that a thread's part is cut into, so that a faster one can help */ };

static void linear(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t total = 0;
    kf_pieces taken;
    for (int i = 0; i < op->segments; i++) total += (op->segment[i].rows + GROUP - 1) / GROUP;
    int pieces = worker->threads == 1 ? 1 : PIECES * worker->threads;
    int64_t most = (total + pieces - 1) / pieces;
    while (kf_take(worker, total, most, &taken)) {
        int64_t before = 0;
        for (int i = 0; i < op->segments; i++) {
            int64_t groups = (op->segment[i].rows + GROUP - 1) / GROUP;
            int64_t first = taken.first - before, last = taken.last - before;
            before += groups;
            if (first < 0) first = 0;
            if (last > groups) last = groups;
            if (first < last) linear_groups(op, step, &op->segment[i], first, last, worker->scratch);
        }
    }
}
