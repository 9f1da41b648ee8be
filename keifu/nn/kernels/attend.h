/* Attention of one row over a span of its past: softmax(scale q k^T + bias) v, not yet merged.
 *
 * A span goes through its slots in chunks: scores of all heads that share the keys, then values. */

enum {
    HEADS = 4,           /* query heads that share one walk through keys and values */
    BUNDLE = 16,         /* query heads that go through a past together */
    AHEAD = 2 * LANES,   /* slots that are fetched before they are read */
};

/* Keys and values are read 2 * LANES elements at a time. In bfloat16 the two vectors that come out
 * hold the even and the odd elements; queries and sums are kept in the same order. */
INLINE void load_pair(const int wide, const uint8_t *at, int left, vf *a, vf *b)
{
    if (wide) {
        float lanes[2 * LANES] = {0};
        if (left < 2 * LANES) memcpy(lanes, at, (size_t)left * 4), at = (const uint8_t *)lanes;
        *a = load((const float *)at), *b = load((const float *)at + LANES);
        return;
    }
    uint16_t lanes[2 * LANES] = {0};
    if (left < 2 * LANES) memcpy(lanes, at, (size_t)left * 2), at = (const uint8_t *)lanes;
    vu bits = load_bits(at);
    *a = (vf)(bits << 16), *b = (vf)(bits & 0xffff0000);
}

/* A head (width) times `scale` in the order of load_pair (line), zeros behind it. */
INLINE void to_pairs(int wide, const float *in, int width, float scale, int line, float *out)
{
    memset(out, 0, line * sizeof(float));
    int whole = wide ? 0 : width / (2 * LANES) * 2 * LANES;
    for (int p = 0; p < whole; p += 2 * LANES) {
        for (int l = 0; l < LANES; l++) out[p + l] = in[p + 2 * l] * scale;
        for (int l = 0; l < LANES; l++) out[p + LANES + l] = in[p + 2 * l + 1] * scale;
    }
    for (int i = whole; i < width; i++)
        out[wide ? i : whole + (i - whole) / 2 + (i - whole) % 2 * LANES] = in[i] * scale;
}

/* And back. */
INLINE void from_pairs(int wide, const float *in, int width, float scale, float *out)
{
    int whole = wide ? 0 : width / (2 * LANES) * 2 * LANES;
    for (int p = 0; p < whole; p += 2 * LANES) {
        for (int l = 0; l < LANES; l++) out[p + 2 * l] = in[p + l] * scale;
        for (int l = 0; l < LANES; l++) out[p + 2 * l + 1] = in[p + LANES + l] * scale;
    }
    for (int i = whole; i < width; i++)
        out[i] = in[wide ? i : whole + (i - whole) / 2 + (i - whole) % 2 * LANES] * scale;
}

/* Floats a head takes among the vectors of load_pair. */
INLINE int line_of(int width) { return (width + 2 * LANES - 1) / (2 * LANES) * 2 * LANES; }

/* And among those of this operation's partial results. */
INLINE int op_line(const kf_op *op)
{
    return op->flags & KF_EIGHT ? kept_width(op->width) : line_of(op->width);
}

/* Sums of LANES vectors, lane by lane, by halving: fold(a, b, d) adds the lanes d apart, a's into
 * the lanes whose number lacks d, b's into those that have it. Four vectors, LANES / 4 apart, are
 * folded at once while they are in registers; what is left of all of them is folded last. */
#define SHUFFLE __builtin_shufflevector
#if LANES == 16
#define FOLD_2(a, b) (SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31)      \
                      + SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23))
#define FOLD_4(a, b) (SHUFFLE(a, b, 0, 1, 2, 3, 20, 21, 22, 23, 8, 9, 10, 11, 28, 29, 30, 31)    \
                      + SHUFFLE(a, b, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27))
#define FOLD_8(a, b) (SHUFFLE(a, b, 0, 1, 18, 19, 4, 5, 22, 23, 8, 9, 26, 27, 12, 13, 30, 31)    \
                      + SHUFFLE(a, b, 2, 3, 16, 17, 6, 7, 20, 21, 10, 11, 24, 25, 14, 15, 28, 29))
#define FOLD_16(a, b) (SHUFFLE(a, b, 0, 17, 2, 19, 4, 21, 6, 23, 8, 25, 10, 27, 12, 29, 14, 31)  \
                       + SHUFFLE(a, b, 1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30))
#define FOLD_REST(v) FOLD_16(FOLD_8(v[0], v[2]), FOLD_8(v[1], v[3]))
#elif LANES == 8
#define FOLD_2(a, b) (SHUFFLE(a, b, 0, 1, 2, 3, 12, 13, 14, 15) + SHUFFLE(a, b, 4, 5, 6, 7, 8, 9, 10, 11))
#define FOLD_4(a, b) (SHUFFLE(a, b, 0, 1, 10, 11, 4, 5, 14, 15) + SHUFFLE(a, b, 2, 3, 8, 9, 6, 7, 12, 13))
#define FOLD_8(a, b) (SHUFFLE(a, b, 0, 9, 2, 11, 4, 13, 6, 15) + SHUFFLE(a, b, 1, 8, 3, 10, 5, 12, 7, 14))
#define FOLD_REST(v) FOLD_8(v[0], v[1])
#else
#define FOLD_2(a, b) (SHUFFLE(a, b, 0, 1, 6, 7) + SHUFFLE(a, b, 2, 3, 4, 5))
#define FOLD_4(a, b) (SHUFFLE(a, b, 0, 5, 2, 7) + SHUFFLE(a, b, 1, 4, 3, 6))
#define FOLD_REST(v) (v[0])
#endif

typedef struct {
    int heads;                /* at most HEADS */
    int line, width;          /* floats a head takes here, elements of a head */
    const float *queries;     /* (heads, line), scaled, in the order of load_pair */
    float *scores;            /* (heads, KF_CHUNK) */
    float *sums;              /* (heads, line) */
    const uint8_t **slots;    /* (KF_CHUNK) where the keys or values of a slot begin */
    size_t offset;            /* of these heads' in a slot */
} chunk;

/* The products of four keys, LANES / 4 slots apart, folded once or twice: one vector a head. */
INLINE void score_four(const int wide, const int H, const int width, const chunk *c, int first,
                       int count, vf *out)
{
    const int row = line_of(width), step = wide ? 8 * LANES : 4 * LANES;
    const uint8_t *keys[4];
    vf dots[HEADS][4];
    for (int i = 0; i < 4; i++) {
        int slot = first + i * (LANES / 4);
        keys[i] = c->slots[slot < count ? slot : count - 1] + c->offset;
        for (int h = 0; h < H; h++) dots[h][i] = (vf){0};
    }
    for (int p = 0; p < row / (2 * LANES); p++) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            vf a, b;
            load_pair(wide, keys[i] + p * step, width - p * 2 * LANES, &a, &b);
            for (int h = 0; h < H; h++) {
                const float *q = c->queries + h * row + p * 2 * LANES;
                dots[h][i] += a * load(q);
                dots[h][i] += b * load(q + LANES);
            }
        }
    }
    for (int h = 0; h < H; h++)
        out[h * (LANES / 4)] = FOLD_4(FOLD_2(dots[h][0], dots[h][2]), FOLD_2(dots[h][1], dots[h][3]));
}

/* scores[h][s] = queries[h] . keys[s] for LANES slots from `s` on, those below `count`. */
INLINE void score_some(const int wide, const int H, const int width, const chunk *c, int s, int count)
{
    vf folded[HEADS * (LANES / 4)];
    for (int j = 0; j < LANES / 4; j++) score_four(wide, H, width, c, s + j, count, folded + j);
    for (int h = 0; h < H; h++) {
        const vf *v = folded + h * (LANES / 4);
        store(c->scores + h * KF_CHUNK + s, FOLD_REST(v));
    }
}

/* sums[h] += scores[h][s] * values[s], `at` pairs from pair `first` on. */
INLINE void add_values(const int wide, const int H, const int width, const int at, const chunk *c,
                       int first, int s, int count)
{
    size_t step = wide ? 8 * LANES : 4 * LANES;
    int row = line_of(width);
    vf sums[HEADS][4];
    for (int h = 0; h < H; h++)
        for (int i = 0; i < 2 * at; i++)
            sums[h][i] = load(c->sums + h * row + (2 * first + i) * LANES);
    for (; s < count; s++) {
        for (int p = 0; p < at; p++) {
            vf a, b;
            int left = width - (first + p) * 2 * LANES;
            load_pair(wide, c->slots[s] + c->offset + (first + p) * step, left, &a, &b);
            for (int h = 0; h < H; h++) {
                float weight = c->scores[h * KF_CHUNK + s];
                sums[h][2 * p] += a * weight;
                sums[h][2 * p + 1] += b * weight;
            }
        }
    }
    for (int h = 0; h < H; h++)
        for (int i = 0; i < 2 * at; i++)
            store(c->sums + h * row + (2 * first + i) * LANES, sums[h][i]);
}

INLINE void values_some(const int wide, const int H, const int width, const chunk *c, int s, int count)
{
    int p = 0, pairs = line_of(width) / (2 * LANES), last = s + LANES < count ? s + LANES : count;
    for (; p + 2 <= pairs; p += 2) add_values(wide, H, width, 2, c, p, s, last);
    if (p < pairs) add_values(wide, H, width, 1, c, p, s, last);
}

/* The common head widths get loops of known length. */
#define WALK(name, H, wide)                                                                      \
    static void name##_##H##_##wide(const chunk *c, int s, int count)                            \
    {                                                                                            \
        if (c->width == 64) name##_some(wide, H, 64, c, s, count);                               \
        else if (c->width == 128) name##_some(wide, H, 128, c, s, count);                        \
        else name##_some(wide, H, c->width, c, s, count);                                        \
    }
#define WALKS(name) WALK(name, 1, 0) WALK(name, 2, 0) WALK(name, 3, 0) WALK(name, 4, 0)          \
    WALK(name, 1, 1) WALK(name, 2, 1) WALK(name, 3, 1) WALK(name, 4, 1)
WALKS(score) WALKS(values)

typedef void (*walker)(const chunk *, int, int);

static walker walker_of(int values, int wide, int heads)
{
#define ROW(name, wide) {name##_1_##wide, name##_2_##wide, name##_3_##wide, name##_4_##wide}
    static const walker table[2][2][4] = {
        {ROW(score, 0), ROW(score, 1)}, {ROW(values, 0), ROW(values, 1)}};
#undef ROW
    return table[values][wide][heads - 1];
}

/* Softmax so far: scores become weights, and what was summed before shrinks to the new maximum. */
static void weigh(const kf_op *op, const chunk *c, int count, int head, const float *distance,
                  float *maxima, float *totals)
{
    for (int h = 0; h < c->heads; h++) {
        float *scores = c->scores + h * KF_CHUNK, *sums = c->sums + h * c->line;
        vf most = splat(-INFINITY), total = {0};
        for (int s = 0; s < count; s += LANES) {
            vf v = load(scores + s);
            if (op->cap > 0) v = op->cap * hyperbolic_tangent(v / op->cap);
            if (op->slopes) v -= op->slopes[head + h] * load(distance + s);
            for (int l = count - s; l < LANES; l++) v[l] = -INFINITY;
            most = larger(most, v);
            store(scores + s, v);
        }
        float new = max_lanes(most), old = maxima[h];
        if (old > new) new = old;
        for (int s = 0; s < count; s += LANES) {
            vf v = exponential(load(scores + s) - new);
            for (int l = count - s; l < LANES; l++) v[l] = 0;
            total += v;
            store(scores + s, v);
        }
        float shrink = old == -INFINITY ? 0 : exponential(splat(old - new))[0];
        totals[h] = totals[h] * shrink + sum_lanes(total);
        maxima[h] = new;
        if (shrink != 1)
            for (int i = 0; i < c->line; i += LANES) store(sums + i, load(sums + i) * shrink);
    }
}

/* What a span of a row's head adds up to: maximum, total, then its values in pairs. */
INLINE float *partial_at(const kf_op *op, int64_t row, int head, int span)
{
    return op->partial + ((row * op->heads + head) * KF_SPANS + span) * KF_PARTIAL(op->width);
}

typedef struct {
    const kf_op *op;
    const kf_step *step;
    kf_view view;
    const int32_t *pages;
    int row, length; /* of the row */
} past;

/* Where the keys and values of `count` slots from index `base` of the view lie, and how far back. */
static void locate(const past *p, int base, int count, const uint8_t **keys,
                   const uint8_t **values, float *distance)
{
    const kf_op *op = p->op;
    size_t slot_bytes = (size_t)op->width * (op->flags & KF_FLOAT ? 4 : 2) * op->kv_heads;
    int page = 1 << op->page_shift;
    for (int s = 0; s < count;) {
        int index = base + s, early = index < p->view.sinks;
        int at = early ? index : index - p->view.sinks + p->view.start;
        int length = early ? kf_nearest(op, p->length) : p->length;
        int run = page - (at & (page - 1)); /* slots that follow in this page */
        if (early && run > p->view.sinks - index) run = p->view.sinks - index;
        if (run > count - s) run = count - s;
        size_t slot = ((size_t)p->pages[at >> op->page_shift] << op->page_shift) + (at & (page - 1));
        size_t offset = slot * slot_bytes;
        for (int i = 0; i < run; i++, offset += slot_bytes) {
            keys[s + i] = (const uint8_t *)op->keys + offset;
            values[s + i] = (const uint8_t *)op->values + offset;
            distance[s + i] = (float)(length - 1 - at - i);
        }
        s += run;
    }
    for (int s = count; s % LANES; s++) distance[s] = 0;
}

/* Heads that are worked on together: what a slot holds for them lies in one piece. */
typedef struct {
    int head, heads, groups; /* from which on, how many query and key heads */
    size_t offset, bytes;    /* of their keys in a slot, or a tile */
} bundle;

static int bundles_of(const kf_op *op)
{
    int share = op->heads / op->kv_heads, groups = BUNDLE / share > 0 ? BUNDLE / share : 1;
    int each = share <= BUNDLE ? 1 : (share + BUNDLE - 1) / BUNDLE; /* bundles of a group */
    return (op->kv_heads + groups - 1) / groups * each;
}

static bundle bundle_at(const kf_op *op, int number)
{
    int share = op->heads / op->kv_heads, groups = BUNDLE / share > 0 ? BUNDLE / share : 1;
    size_t bytes = op->flags & KF_EIGHT ? tile_bytes(op->width)
                                        : (size_t)op->width * (op->flags & KF_FLOAT ? 4 : 2);
    if (share > BUNDLE) {
        int each = (share + BUNDLE - 1) / BUNDLE, part = number % each * BUNDLE;
        int group = number / each, heads = share - part < BUNDLE ? share - part : BUNDLE;
        return (bundle){group * share + part, heads, 1, group * bytes, bytes};
    }
    int first = number * groups;
    if (groups > op->kv_heads - first) groups = op->kv_heads - first;
    return (bundle){first * share, groups * share, groups, first * bytes, groups * bytes};
}

/* The memory of slots [from, to), to the second cache: what reads them jumps from head to head, which
 * no hardware foresees, and the first cache has too few lines under way for so many. */
INLINE void fetch(const uint8_t *const *slots, unsigned from, unsigned to, const bundle *b)
{
    for (unsigned s = from; s < to; s++)
        for (size_t i = 0; i < b->bytes; i += 64) __builtin_prefetch(slots[s] + b->offset + i, 0, 2);
}

/* One pass over a chunk's keys or values, LANES slots at a time, each for all heads; between them it
 * asks for what comes later, in this pass or at the start of the next, a few lines at a time. */
static void walk(int values, int wide, const bundle *b, const chunk *parts, int number, int count,
                 const uint8_t *const *after, int later)
{
    const uint8_t **slots = parts[0].slots;
    int whole = (count + LANES - 1) / LANES * LANES;
    for (int s = 0; s < count; s += LANES) {
        int here = s + AHEAD < whole;
        unsigned first = here ? s + AHEAD : s + AHEAD - whole, limit = here ? count : later;
        for (int i = 0; i < number; i++) {
            unsigned from = first + LANES * i / number, to = first + LANES * (i + 1) / number;
            fetch(here ? slots : after, from, to < limit ? to : limit, b);
            walker_of(values, wide, parts[i].heads)(parts + i, s, count);
        }
    }
}

/* The queries of a bundle in the order of keys; `early`: turned back to meet the sinks. */
static void ask(const past *p, const float *q, const bundle *b, int early, float *out)
{
    const kf_op *op = p->op;
    float turned[KF_WIDEST];
    q += b->head * op->width;
    for (int h = 0; h < b->heads; h++, q += op->width, out += line_of(op->width)) {
        memcpy(turned, q, op->width * sizeof(float));
        if (early) turn(op, p->step, p->row, turned);
        to_pairs(!!(op->flags & KF_FLOAT), turned, op->width, op->scale, line_of(op->width), out);
    }
}

/* Indices [from, to) of a past for the heads of a bundle. */
static void attend_heads(const past *p, const float *q, const bundle *b, int from, int to,
                         float *const *out)
{
    const kf_op *op = p->op;
    int wide = !!(op->flags & KF_FLOAT), line = line_of(op->width), share = b->heads / b->groups;
    size_t each = b->bytes / b->groups;
    float queries[BUNDLE * KF_WIDEST], sums[BUNDLE * KF_WIDEST], scores[BUNDLE * KF_CHUNK];
    float maxima[BUNDLE], totals[BUNDLE] = {0}, distance[KF_CHUNK];
    const uint8_t *keys[KF_CHUNK], *values[KF_CHUNK];
    chunk parts[BUNDLE];
    memset(sums, 0, b->heads * line * sizeof(float));
    for (int h = 0; h < b->heads; h++) maxima[h] = -INFINITY;
    int count = 0;
    for (int h = 0, taken; h < b->heads; h += taken) {
        taken = share - h % share < HEADS ? share - h % share : HEADS;
        parts[count++] = (chunk){taken, line, op->width, queries + h * line, scores + h * KF_CHUNK,
                                 sums + h * line, keys, b->offset + h / share * each};
    }
    int early = op->rotated ? p->view.sinks : 0;
    for (int base = from, n; base < to; base += n) {
        int end = base < early && early < to ? early : to;
        n = end - base < KF_CHUNK ? end - base : KF_CHUNK;
        if (base == from || base == early) ask(p, q, b, base < early, queries);
        locate(p, base, n, keys, values, distance);
        if (base == from)
            fetch(keys, 0, AHEAD < n ? AHEAD : n, b);
        for (int i = 0; i < count; i++) parts[i].slots = keys;
        walk(0, wide, b, parts, count, n, values, n);
        chunk all = {b->heads, line, op->width, queries, scores, sums, keys, 0};
        weigh(op, &all, n, b->head, distance, maxima, totals);
        for (int i = 0; i < count; i++) parts[i].slots = values;
        walk(1, wide, b, parts, count, n, keys, 0);
    }
    for (int h = 0; h < b->heads; h++) {
        out[h][0] = maxima[h], out[h][1] = totals[h];
        memcpy(out[h] + KF_HEAD, sums + h * line, line * sizeof(float));
    }
}

static void attend_span(const kf_op *op, const kf_step *step, int row, int number, int span)
{
    past p = {op, step, kf_visible(op, step, row), NULL, row, step->lengths[row]};
    p.pages = step->tables[op->table] + step->owners[row] * step->table_strides[op->table];
    int size = kf_span(p.view.seen), from = span * size;
    int to = from + size < p.view.seen ? from + size : p.view.seen;
    bundle b = bundle_at(op, number);
    float *out[BUNDLE];
    for (int h = 0; h < b.heads; h++) out[h] = partial_at(op, row, b.head + h, span);
    attend_heads(&p, op->in + row * op->in_stride, &b, from, to, out);
}
