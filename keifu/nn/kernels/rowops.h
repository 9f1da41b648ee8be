/* Operations on rows of activations: lookup, norms, rotary, activations, sums, 8-bit copies. */

/* The codes that an operation leaves of a row it writes, `width` columns. */
INLINE kf_codes *kf_codes_at(const kf_op *op, int64_t row)
{
    return (kf_codes *)(op->codes + row * kf_codes_bytes(op->width));
}

/* A block of activations in two planes, or in the first alone. A NaN or infinity makes the block's
 * step NaN. */
INLINE void quantise_block(const float *x, kf_codes *q, int coarse)
{
    vf most = {0}, odd = {0};
    for (int i = 0; i < BLOCK; i += LANES) {
        vf v = load(x + i);
        most = larger(most, absolute(v));
        odd += v * 0.0f;
    }
    float largest = max_lanes(most), step = largest / 127.0f;
    float inverse = largest > 0x1p-110f ? 127.0f / largest : 0.0f;
    int32_t half[2] = {0, 0};
    for (int i = 0; i < BLOCK; i += LANES) {
        vf value = load(x + i);
        vi high = nearest(value * inverse);
        /* At most half a step is left: 128 of these, and the one that does not fit is cut. */
        vf left = (value - from_int(high) * step) * (inverse * FINE);
        vi low = coarse ? (vi){0} : nearest(smaller(left, splat(127.0f)));
        narrow_signed(q->codes + i, high);
        narrow_signed(q->rest + i, low);
        half[i / 16] += FINE * sum_whole(high) + sum_whole(low);
    }
    q->scale = step / FINE + sum_lanes(odd);
    q->total = half[0] + half[1];
    q->sum = q->scale * (float)q->total;
    q->half[0] = half[0], q->half[1] = half[1];
}

static void quantise_row(const float *x, kf_codes *codes, int width, int coarse)
{
    for (int b = 0; b < width / BLOCK; b++) quantise_block(x + b * BLOCK, codes + b, coarse);
}

static void quantise(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, last, blocks = op->width / BLOCK;
    kf_share(blocks * kf_rows(op, step), worker, &first, &last);
    for (int64_t i = first; i < last; i++) {
        int64_t row = i / blocks, b = i % blocks;
        quantise_block(op->in + row * op->in_stride + b * BLOCK, kf_codes_at(op, row) + b,
                       kf_coarse(op, step, row));
    }
}

static void embed(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, last;
    kf_share(kf_rows(op, step), worker, &first, &last);
    const kf_segment *s = op->segment;
    for (int64_t row = first; row < last; row++) {
        int64_t entry = op->flags & KF_BY_ROW ? step->tokens[row]
                                              : step->positions[row] + (int64_t)op->offset;
        float *out = op->out + row * op->out_stride, *values = worker->scratch;
        unpack(s->format, s->data + entry / GROUP * s->group_bytes, s->cols, entry % GROUP,
               entry % GROUP + 1, values, s->cols);
        for (int i = 0; i < op->width; i++)
            out[i] = op->flags & KF_ADD ? out[i] + op->scale * values[i] : op->scale * values[i];
    }
}

INLINE float sum_of(const float *x, int width, float mean, int squared)
{
    vf sum = {0};
    float tail = 0;
    int whole = width / LANES * LANES;
    for (int i = 0; i < whole; i += LANES) {
        vf v = load(x + i) - mean;
        sum += squared ? v * v : v;
    }
    for (int i = whole; i < width; i++) {
        float v = x[i] - mean;
        tail += squared ? v * v : v;
    }
    return sum_lanes(sum) + tail;
}

/* Weights go by head where `other_stride` (floats from one head's to the next's) is not 0. */
static void norm(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, last;
    kf_share((int64_t)kf_rows(op, step) * op->heads, worker, &first, &last);
    for (int64_t i = first; i < last; i++) {
        int64_t row = i / op->heads, head = i % op->heads;
        const float *x = op->in + row * op->in_stride + head * op->width;
        const float *weight = op->weight ? op->weight + head * op->other_stride : NULL;
        float *out = op->out + row * op->out_stride + head * op->width;
        float mean = op->flags & KF_LAYER ? sum_of(x, op->width, 0, 0) / op->width : 0;
        float inverse = 1.0f / sqrtf(sum_of(x, op->width, mean, 1) / op->width + op->eps);
        for (int c = 0; c < op->width; c++) out[c] = (x[c] - mean) * inverse;
        if (weight)
            for (int c = 0; c < op->width; c++) out[c] *= weight[c];
        if (op->bias)
            for (int c = 0; c < op->width; c++) out[c] += op->bias[c];
        if (op->codes) quantise_row(out, kf_codes_at(op, row), op->width, kf_coarse(op, step, row));
    }
}

INLINE void turn(const kf_op *op, const kf_step *step, int64_t row, float *x)
{
    int64_t half = op->rotated / 2;
    int64_t entry = op->flags & KF_BY_ROW ? row : step->positions[row];
    const float *cosines = op->cosines + entry * half, *sines = op->sines + entry * half;
    int interleaved = op->flags & KF_INTERLEAVED;
    int64_t apart = interleaved ? 1 : half, stride = interleaved ? 2 : 1;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i * stride], b = x[i * stride + apart];
        x[i * stride] = a * cosines[i] - b * sines[i];
        x[i * stride + apart] = b * cosines[i] + a * sines[i];
    }
}

static void rotary(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, last;
    kf_share((int64_t)kf_rows(op, step) * op->heads, worker, &first, &last);
    for (int64_t i = first; i < last; i++) {
        int64_t row = i / op->heads, head = i % op->heads;
        turn(op, step, row, op->out + row * op->out_stride + head * op->width);
    }
}

INLINE void activate_block(const int kind, const float *in, const float *gated, float *out, int count)
{
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
        vf v = activated(kind, load(in + i));
        store(out + i, gated ? v * load(gated + i) : v);
    }
    if (i == count) return;
    float x[LANES] = {0};
    memcpy(x, in + i, (count - i) * sizeof(float));
    store(x, activated(kind, load(x)));
    for (int l = 0; l < count - i; l++) out[i + l] = gated ? x[l] * gated[i + l] : x[l];
}

#define ACTIVATE(kind) case kind: activate_block(kind, in, gated, out, count); break;
static void activate(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, last, blocks = (op->width + BLOCK - 1) / BLOCK;
    kf_share(blocks * kf_rows(op, step), worker, &first, &last);
    for (int64_t i = first; i < last; i++) {
        int64_t row = i / blocks, b = i % blocks;
        int count = op->width - b * BLOCK < BLOCK ? op->width - b * BLOCK : BLOCK;
        const float *in = op->in + row * op->in_stride + b * BLOCK;
        const float *gated = op->other ? op->other + row * op->other_stride + b * BLOCK : NULL;
        float *out = op->out + row * op->out_stride + b * BLOCK;
        switch (op->kind) {
            ACTIVATE(KF_RELU) ACTIVATE(KF_RELU2) ACTIVATE(KF_GELU) ACTIVATE(KF_GELU_TANH)
            ACTIVATE(KF_QUICK_GELU) ACTIVATE(KF_SILU) ACTIVATE(KF_SIGMOID) ACTIVATE(KF_TANH)
        default: activate_block(KF_IDENTITY, in, gated, out, count);
        }
        if (op->codes) quantise_block(out, kf_codes_at(op, row) + b, kf_coarse(op, step, row));
    }
}
#undef ACTIVATE

static void softcap(const float *in, float *out, int64_t count, float cap)
{
    float lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        store(out + i, cap * hyperbolic_tangent(load(in + i) / cap));
    memcpy(lanes, in + i, (count - i) * sizeof(float));
    store(lanes, cap * hyperbolic_tangent(load(lanes) / cap));
    memcpy(out + i, lanes, (count - i) * sizeof(float));
}

/* sum: scale * in + other; scale; softcap: cap * tanh(in / cap); clamp to [low, high]. */
static void combine(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, last, rows = kf_rows(op, step);
    kf_share(rows * op->width, worker, &first, &last);
    for (int64_t row = first / op->width; row < rows && row * op->width < last; row++) {
        int64_t from = first > row * op->width ? first - row * op->width : 0;
        int64_t to = last < (row + 1) * op->width ? last - row * op->width : op->width;
        const float *in = op->in + row * op->in_stride;
        const float *other = op->other ? op->other + row * op->other_stride : NULL;
        float *out = op->out + row * op->out_stride;
        if (op->kind == KF_SUM)
            for (int64_t i = from; i < to; i++) out[i] = op->scale * in[i] + other[i];
        else if (op->kind == KF_SCALE)
            for (int64_t i = from; i < to; i++) out[i] = op->scale * in[i];
        else if (op->kind == KF_CLAMP)
            for (int64_t i = from; i < to; i++)
                out[i] = in[i] < op->low ? op->low : in[i] > op->high ? op->high : in[i];
        else softcap(in + from, out + from, to - from, op->cap);
    }
}

/* The chosen rows, one after another. */
static void choose(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, last;
    kf_share(step->count, worker, &first, &last);
    for (int64_t i = first; i < last; i++)
        memcpy(op->out + i * op->out_stride, op->in + step->chosen[i] * op->in_stride,
               (size_t)op->width * sizeof(float));
}
