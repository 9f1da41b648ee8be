/* Operations that keep a state between steps, in the slot of each request: short filters, selective
 * scans, state-space duality, gated linear recurrences. */

/* This thread's columns [first, end), in whole vectors of the widest kind. */
INLINE void columns_of(const kf_worker *worker, int64_t width, int64_t *first, int64_t *end)
{
    kf_share((width + 15) / 16, worker, first, end);
    *first *= 16, *end *= 16;
    if (*end > width) *end = width;
}

static void filter(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, end;
    columns_of(worker, op->width, &first, &end);
    kf_filter f = {
        .x = op->in, .weight = op->weight, .bias = op->bias, .tail = op->state, .y = op->out,
        .offsets = step->offsets, .slots = step->slots, .x_stride = op->in_stride,
        .y_stride = op->out_stride, .rows = step->runs, .inner = op->width, .taps = op->states,
        .act = op->kind,
    };
    scan_filtered(&f, first, end);
}

/* weight: poles, bias: d; other: dt before softplus; third: b, then c. */
static void selective(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, end;
    columns_of(worker, op->width, &first, &end);
    kf_scan s = {
        .x = op->in, .dt = op->other, .b = op->third, .c = op->third + op->states,
        .poles = op->weight, .d = op->bias, .state = op->state, .y = op->out,
        .offsets = step->offsets, .slots = step->slots, .x_stride = op->in_stride,
        .dt_stride = op->other_stride, .b_stride = op->third_stride, .c_stride = op->third_stride,
        .y_stride = op->out_stride, .rows = step->runs, .inner = op->width, .states = op->states,
        .raw = 1,
    };
    scan_selective(&s, first, end);
}

/* A token's h = decay h + put b^T for one row of a head's matrix; returns h c. */
INLINE float ssd_row(float *h, float decay, float put, const float *b, const float *c, int states)
{
    vf sum = {0};
    float rest = 0;
    int n = 0;
    for (; n + LANES <= states; n += LANES) {
        vf now = load(h + n) * decay + load(b + n) * put;
        store(h + n, now);
        sum += now * load(c + n);
    }
    for (; n < states; n++) {
        h[n] = h[n] * decay + b[n] * put;
        rest += h[n] * c[n];
    }
    return sum_lanes(sum) + rest;
}

enum { HEAD_PART = 16 /* rows of a head's matrix that are one piece of work */ };

/* h = exp(dt weight) h + dt x b^T, y = h c + bias x for each head; other: a head's dt before softplus,
 * which is kept within low and high; third: b of all groups, then c. */
static void ssd(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, end, parts = (op->width + HEAD_PART - 1) / HEAD_PART, states = op->states;
    kf_share(parts * op->heads * step->runs, worker, &first, &end);
    for (int64_t i = first; i < end; i++) {
        int64_t run = i / (parts * op->heads), head = i / parts % op->heads;
        int64_t from = i % parts * HEAD_PART, to = from + HEAD_PART;
        if (to > op->width) to = op->width;
        int64_t group = head / (op->heads / op->groups) * states, at = head * op->width;
        float *state = op->state + (step->slots[run] * op->heads * op->width + at) * states;
        for (int64_t t = step->offsets[run]; t < step->offsets[run + 1]; t++) {
            const float *x = op->in + t * op->in_stride + at;
            const float *b = op->third + t * op->third_stride + group, *c = b + op->groups * states;
            vf wide = softplus(splat(op->other[t * op->other_stride + head]));
            wide = smaller(splat(op->high), larger(splat(op->low), wide));
            float dt = wide[0], decay = exponential(wide * op->weight[head])[0];
            float *y = op->out + t * op->out_stride + at;
            for (int64_t p = from; p < to; p++)
                y[p] = ssd_row(state + p * states, decay, dt * x[p], b, c, (int)states)
                       + op->bias[head] * x[p];
        }
    }
}

/* a = exp(weight sigmoid(gone)), h = a h + sqrt(1 - a^2) sigmoid(taken) x, at position 0 without the
 * root; other: taken, then gone. */
INLINE void lru_row(const kf_op *op, const kf_step *step, int64_t run, int64_t at, const int count)
{
    float *state = op->state + (int64_t)step->slots[run] * op->width + at;
    vf h = load_some(state, count), scale = load_some(op->weight + at, count);
    for (int64_t t = step->offsets[run]; t < step->offsets[run + 1]; t++) {
        const float *gates = op->other + t * op->other_stride + at;
        vf log = scale * sigmoid(load_some(gates + op->width, count));
        vf x = load_some(op->in + t * op->in_stride + at, count) * sigmoid(load_some(gates, count));
        if (step->positions[t]) x *= square_root(-exponential_less_one(2.0f * log));
        h = exponential(log) * h + x;
        store_some(op->out + t * op->out_stride + at, h, count);
    }
    store_some(state, h, count);
}

static void lru(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, end;
    columns_of(worker, op->width, &first, &end);
    for (int64_t run = 0; run < step->runs; run++) {
        for (int64_t at = first; at < end; at += LANES) {
            if (end - at < LANES) lru_row(op, step, run, at, (int)(end - at));
            else lru_row(op, step, run, at, LANES);
        }
    }
}
