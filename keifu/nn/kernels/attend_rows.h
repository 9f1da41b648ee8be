/* Attention of many rows of one request: a prompt's. A lane is a row, a vector a head.
 *
 * Rows that follow each other share nearly all they see, so a chunk of keys is made float32 once
 * and multiplied with LANES rows of up to VECTORS heads. With queries and weights turned so that
 * lanes are rows, scores and values are the same product, and the softmax needs no sum across
 * lanes. */

enum {
    FEW = 12,     /* rows in a run that are worth it; fewer have the bits of rows alone */
    VECTORS = 4,  /* heads at once */
    SLOTS = 32,   /* slots of a chunk: what fits the first cache with its keys */
    WIDE_TILE = LANES == 16 ? 8 : 4, /* rows of a product that registers hold, for 2 or 3 vectors */
};

/* C[i][v] = (add ? C[i][v] : 0) + sum over k of A[i * row + k * step] * B[k][v], `tile` rows at a time. */
INLINE void product(const int V, const int tile, const int add, const float *a, int row, int step,
                    const vf *b, vf *c, int rows, int length)
{
    for (int i = 0; i < rows; i += tile) {
        vf sums[16][VECTORS];
        for (int r = 0; r < tile; r++)
            for (int v = 0; v < V; v++) sums[r][v] = add ? c[(i + r) * V + v] : (vf){0};
        for (int k = 0; k < length; k++) {
            const float *at = a + i * row + k * step;
            for (int r = 0; r < tile; r++)
                for (int v = 0; v < V; v++) sums[r][v] += at[r * row] * b[k * V + v];
        }
        for (int r = 0; r < tile; r++)
            for (int v = 0; v < V; v++) c[(i + r) * V + v] = sums[r][v];
    }
}

typedef struct {
    const kf_op *op;
    const int32_t *pages;
    int row, rows, group; /* the first row, how many, which kv head */
    int shortest, latest; /* every row sees the slots [latest, shortest) */
    vi lengths, starts, sinks; /* of each lane's row: slots up to its own, and kf_view's */
    vi nearest; /* kf_nearest's */
} run_of_rows;

/* Keys (line, SLOTS) or values (SLOTS, line) out of the tiles from slot `first` on as floats, zeros
 * outside of [skip, count). */
static void widen_tiles(const run_of_rows *r, int values, int first, int skip, int count, float *out)
{
    const kf_op *op = r->op;
    int wide = kept_width(op->width), shift = op->page_shift;
    for (int s = 0; s < SLOTS; s += TILE) {
        float scales[TILE] = {0};
        const uint8_t *tile = NULL;
        if (s < count) {
            int at = first + s;
            size_t slot = ((size_t)r->pages[at >> shift] << shift) + (at & ((1 << shift) - 1));
            tile = (const uint8_t *)(values ? op->values : op->keys);
            tile += (slot / TILE * op->kv_heads + r->group) * tile_bytes(op->width);
            int from = skip > s ? skip - s : 0, to = count - s < TILE ? count - s : TILE;
            if (to > from)
                memcpy(scales + from, (const float *)(tile + TILE * wide) + from, (to - from) * 4);
        }
        for (int i = 0; i < wide / 4; i++)
            for (int lane = 0; lane < TILE; lane += LANES)
                for (int b = 0; b < 4; b++) {
                    vu codes = tile ? load_bits(tile + i * 64 + lane * 4) : (vu){0};
                    vf x = from_int((vi)(codes >> 8 * b & 255) - MIDDLE);
                    int slot = s + i / (wide / TILE) * 4 + b;
                    if (values)
                        store(out + slot * wide + i % (wide / TILE) * TILE + lane, x * scales[slot - s]);
                    else
                        store(out + (4 * i + b) * SLOTS + s + lane, x * load(scales + lane));
                }
    }
}

/* Keys or values of `count` slots from `first` on as floats (SLOTS, line), zeros behind them. */
static void widen_slots(const run_of_rows *r, const void *state, int first, int count, float *out)
{
    const kf_op *op = r->op;
    int wide = !!(op->flags & KF_FLOAT), line = op_line(op), shift = op->page_shift;
    size_t bytes = (size_t)op->width * (wide ? 4 : 2);
    for (int s = 0; s < count; s++) {
        int at = first + s, mask = (1 << shift) - 1;
        size_t slot = ((size_t)r->pages[at >> shift] << shift) + (at & mask);
        const uint8_t *from = (const uint8_t *)state + (slot * op->kv_heads + r->group) * bytes;
        for (int p = 0; p < line; p += 2 * LANES) {
            vf a, b;
            load_pair(wide, from + p * (wide ? 4 : 2), op->width - p, &a, &b);
            store(out + s * line + p, a);
            store(out + s * line + p + LANES, b);
        }
    }
    memset(out + count * line, 0, (size_t)(SLOTS - count) * line * sizeof(float));
}

typedef struct {
    int head;                              /* the first of V */
    vf most[VECTORS], total[VECTORS];      /* of each lane: largest score, sum of weights */
    vf queries[KF_WIDEST * VECTORS], sums[KF_WIDEST * VECTORS]; /* (line, V) */
    vf scores[SLOTS * VECTORS];
    float slots[SLOTS * KF_WIDEST];
} row_state;

/* Scores become weights; what was summed before shrinks to the new maximum. */
INLINE void weigh_rows(const int V, const run_of_rows *r, row_state *s, int first, int skip, int count)
{
    const kf_op *op = r->op;
    int seen = skip <= 0 && first >= r->latest && first + count <= r->shortest;
    for (int v = 0; v < V; v++) {
        vf most = s->most[v], total = {0};
        for (int i = 0; i < SLOTS; i++) {
            int at = first + i;
            vf x = s->scores[i * V + v];
            if (op->cap > 0) x = op->cap * hyperbolic_tangent(x / op->cap);
            if (op->slopes) {
                vi lengths = at < op->sinks ? r->nearest : r->lengths;
                x -= op->slopes[s->head + v] * from_int(lengths - 1 - at);
            }
            if (!seen || i < skip || i >= count) {
                vi visible = (at < r->lengths) & ((at >= r->starts) | (at < r->sinks));
                if (i < skip || i >= count) visible = (vi){0};
                x = (vf)(((vi)x & visible) | ((vi)splat(-INFINITY) & ~visible));
            }
            most = larger(most, x);
            s->scores[i * V + v] = x;
        }
        /* A lane that has seen nothing yet keeps a finite maximum: e^(-inf - 0) is cut off below. */
        vf floor = larger(most, splat(-1e30f)), shrink = exponential(s->most[v] - floor);
        shrink = (vf)((vi)shrink & (s->most[v] > -1e30f));
        for (int i = 0; i < SLOTS; i++) {
            vf x = s->scores[i * V + v], weight = exponential(x - floor);
            weight = (vf)((vi)weight & (x > -1e30f));
            total += weight;
            s->scores[i * V + v] = weight;
        }
        s->total[v] = s->total[v] * shrink + total;
        s->most[v] = most;
        for (int i = 0; i < op_line(op); i++) s->sums[i * V + v] *= shrink;
    }
}

INLINE void attend_slots(const int V, const int tile, const run_of_rows *r, row_state *s, int first,
                         int last)
{
    int line = op_line(r->op), tiles = r->op->flags & KF_EIGHT;
    for (int at = tiles ? first / TILE * TILE : first; at < last; at += SLOTS) {
        int count = last - at < SLOTS ? last - at : SLOTS;
        if (tiles) {
            widen_tiles(r, 0, at, first - at, count, s->slots);
            product(V, tile, 0, s->slots, 1, SLOTS, s->queries, s->scores, SLOTS, line);
            weigh_rows(V, r, s, at, first - at, count);
            widen_tiles(r, 1, at, first - at, count, s->slots);
            product(V, tile, 1, s->slots, 1, line, s->scores, s->sums, line, SLOTS);
            continue;
        }
        widen_slots(r, r->op->keys, at, count, s->slots);
        product(V, tile, 0, s->slots, line, 1, s->queries, s->scores, SLOTS, line);
        weigh_rows(V, r, s, at, 0, count);
        widen_slots(r, r->op->values, at, count, s->slots);
        product(V, tile, 1, s->slots, 1, line, s->scores, s->sums, line, SLOTS);
    }
}

/* The queries of V heads, a lane a row; `early`: turned back to meet the sinks. */
INLINE void ask_rows(const int V, const run_of_rows *r, const kf_step *step, row_state *s, int early)
{
    const kf_op *op = r->op;
    int line = op_line(op), wide = !!(op->flags & (KF_FLOAT | KF_EIGHT));
    float turned[KF_WIDEST], pairs[KF_WIDEST];
    memset(s->queries, 0, sizeof(vf) * line * V);
    for (int v = 0; v < V; v++) {
        for (int l = 0; l < r->rows; l++) {
            const float *q = op->in + (r->row + l) * op->in_stride + (s->head + v) * op->width;
            memcpy(turned, q, op->width * sizeof(float));
            if (early) turn(op, step, r->row + l, turned);
            to_pairs(wide, turned, op->width, op->scale, line, pairs);
            for (int i = 0; i < line; i++) s->queries[i * V + v][l] = pairs[i];
        }
    }
}

/* V heads of a run's rows, each to the first span of its partial results. */
INLINE void attend_run(const int V, const int tile, const run_of_rows *r, const kf_step *step,
                       int head)
{
    const kf_op *op = r->op;
    int line = op_line(op);
    row_state s;
    s.head = head;
    memset(s.sums, 0, sizeof(vf) * line * V);
    for (int v = 0; v < V; v++) s.most[v] = splat(-INFINITY), s.total[v] = (vf){0};
    int start = kf_visible(op, step, r->row).start, last = step->lengths[r->row + r->rows - 1];
    int early = start < op->sinks ? start : op->sinks;
    if (op->rotated) early = last < op->sinks ? last : op->sinks;
    if (early > 0) {
        ask_rows(V, r, step, &s, op->rotated);
        attend_slots(V, tile, r, &s, 0, early);
    }
    if (early == 0 || op->rotated) ask_rows(V, r, step, &s, 0);
    attend_slots(V, tile, r, &s, start > early ? start : early, last);
    for (int v = 0; v < V; v++) {
        for (int l = 0; l < r->rows; l++) {
            float *out = partial_at(op, r->row + l, head + v, 0);
            out[0] = s.most[v][l], out[1] = s.total[v][l];
            for (int i = 0; i < line; i++) out[KF_HEAD + i] = s.sums[i * V + v][l];
        }
    }
}

/* All heads that share a group's keys, for `rows` rows of a run from `row` on. */
static void attend_rows(const kf_op *op, const kf_step *step, int row, int rows, int group)
{
    run_of_rows r = {op, NULL, row, rows, group, step->lengths[row], 0, {0}, {0}, {0}, {0}};
    r.pages = step->tables[op->table] + step->owners[row] * step->table_strides[op->table];
    for (int l = 0; l < LANES; l++) {
        kf_view view = kf_visible(op, step, row + (l < rows ? l : 0));
        r.lengths[l] = step->lengths[row + (l < rows ? l : 0)];
        r.starts[l] = view.start, r.sinks[l] = view.sinks;
        r.nearest[l] = kf_nearest(op, r.lengths[l]);
        if (view.start > r.latest) r.latest = view.start;
    }
    int share = op->heads / op->kv_heads, head = group * share;
    for (int left = share; left > 0; left -= VECTORS, head += VECTORS) {
        if (left >= 4) attend_run(4, WIDE_TILE / 2, &r, step, head);
        else if (left == 3) attend_run(3, WIDE_TILE, &r, step, head);
        else if (left == 2) attend_run(2, WIDE_TILE, &r, step, head);
        else attend_run(1, 2 * WIDE_TILE, &r, step, head);
    }
}

INLINE int follows(const kf_step *step, int row)
{
    return row > 0 && row < step->rows && step->owners[row] == step->owners[row - 1]
           && step->lengths[row] == step->lengths[row - 1] + 1;
}

/* Whether a row is one of at least FEW of its request that follow each other in this step. */
static int in_run(const kf_step *step, int row)
{
    int first = row, last = row;
    while (row - first < FEW && follows(step, first)) first--;
    while (last - row < FEW && follows(step, last + 1)) last++;
    return last - first + 1 >= FEW;
}

/* Rows that go together from `row` on. */
static int together(const kf_step *step, int row)
{
    int rows = 1;
    if (!in_run(step, row)) return 1;
    while (rows < LANES && follows(step, row + rows)) rows++;
    return rows;
}
