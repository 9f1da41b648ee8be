/* Attention of one row over a span of a past that is kept in 8 bits.
 *
 * Queries and weights become two planes of 8-bit codes (a weight takes its value's scale along), so
 * scores and sums are integer products; only the softmax between them is done in float. A span is a
 * number of tiles: those of the sinks first, then those of the window, each as far as it is seen.
 *
 * Keys are read from front to back, which processors foresee. Every line of them that is read asks
 * for one of the same tile's values, so no more are under way than are used meanwhile. */

enum { CHUNK_TILES = 16, CHUNK_SLOTS = CHUNK_TILES * TILE };

/* Some of a head's numbers as codes: FINE * planes[0] + planes[1], times scale. */
typedef struct {
    float scale;
    int32_t totals[PLANES];
    int8_t *planes[PLANES];
} coded;

typedef struct {
    const uint8_t *keys, *values; /* of the first head */
    int at, from, to;             /* its first slot; which of its slots are seen */
    int length;                   /* of the row, as these slots meet it */
} tile_view;

/* Tiles that a row goes through: of its sinks, and of its window. */
typedef struct { int early, first, count; } tile_range;

INLINE tile_range tiles_of(kf_view view, int length)
{
    int early = (view.sinks + TILE - 1) / TILE, first = view.start / TILE;
    return (tile_range){early, first, early + (length + TILE - 1) / TILE - first};
}

/* Memory that is read before long, to the second cache. */
INLINE void soon(const uint8_t *at) { __builtin_prefetch(at, 0, 2); }

/* Tiles that go into one span: a matter of the row alone, and an even number of spans, as kf_span's. */
INLINE int span_tiles(int count)
{
    int spans = (count + 2 * CHUNK_TILES - 1) / (2 * CHUNK_TILES) * 2;
    if (count <= 4) return count;
    if (spans > KF_SPANS) spans = KF_SPANS;
    return (count + spans - 1) / spans;
}

/* Sixteen scores of each of H heads. */
INLINE void score_tile(const int H, const int wide, const uint8_t *tile, const uint8_t *values,
                       const coded *q, float *scores)
{
    for (int lane = 0; lane < TILE; lane += LANES) {
        vi sums[HEADS][PLANES];
        for (int h = 0; h < H; h++)
            for (int p = 0; p < PLANES; p++) sums[h][p] = splat_int(-MIDDLE * q[h].totals[p]);
        for (int i = 0; i < wide; i += 4) {
            vu codes = load_bits(tile + i * TILE + lane * 4);
            if (lane == 0) soon(values + i * TILE);
            for (int h = 0; h < H; h++)
                for (int p = 0; p < PLANES; p++)
                    sums[h][p] = dot4_wide(sums[h][p], codes, (const quad *)(q[h].planes[p] + i));
        }
        vf scale = load((const float *)(tile + TILE * wide) + lane);
        for (int h = 0; h < H; h++) {
            vf sum = from_int(sums[h][0]) * (float)FINE + from_int(sums[h][1]);
            store(scores + h * CHUNK_SLOTS + lane, sum * (scale * q[h].scale));
        }
    }
}

/* What a chunk's tiles add to V vectors of elements, from element `first` on, of H heads. */
INLINE void sum_tiles(const int H, const int V, const int wide, const tile_view *tiles, size_t offset,
                      int count, const coded *w, int first, float *out)
{
    for (int lane = 0; lane < TILE; lane += LANES) {
        vi sums[HEADS][4][PLANES];
        for (int h = 0; h < H; h++)
            for (int v = 0; v < V; v++)
                for (int p = 0; p < PLANES; p++) sums[h][v][p] = splat_int(-MIDDLE * w[h].totals[p]);
        for (int t = 0; t < count; t++) {
            const uint8_t *tile = tiles[t].values + offset + first * 4 + lane * 4;
#pragma GCC unroll 4
            for (int s = 0; s < TILE; s += 4)
                for (int v = 0; v < V; v++) {
                    vu codes = load_bits(tile + s * wide + v * 64);
                    for (int h = 0; h < H; h++)
                        for (int p = 0; p < PLANES; p++)
                            sums[h][v][p] = dot4_wide(sums[h][v][p], codes,
                                                      (const quad *)(w[h].planes[p] + t * TILE + s));
                }
        }
        for (int h = 0; h < H; h++)
            for (int v = 0; v < V; v++) {
                float *at = out + h * wide + first + v * TILE + lane;
                vf sum = from_int(sums[h][v][0]) * (float)FINE + from_int(sums[h][v][1]);
                store(at, load(at) + sum * w[h].scale);
            }
    }
}

INLINE void sum_heads(const int H, const int wide, const tile_view *tiles, size_t offset, int count,
                      const coded *w, float *out)
{
    const int V = LANES < 16 ? 1 : H <= 3 ? 4 : 2;
    int at = 0;
    for (; at + V * TILE <= wide; at += V * TILE)
        sum_tiles(H, V, wide, tiles, offset, count, w, at, out);
    for (; at < wide; at += TILE) sum_tiles(H, 1, wide, tiles, offset, count, w, at, out);
}

/* The common head widths get loops of known length. */
#define BY_WIDTH(call)                                                                           \
    if (wide == 64) { const int W = 64; call; }                                                  \
    else if (wide == 128) { const int W = 128; call; }                                           \
    else { const int W = wide; call; }
#define TILED(H)                                                                                 \
    static void score_##H(int wide, const uint8_t *tile, const uint8_t *values, const coded *q,  \
                          float *scores)                                                         \
    {                                                                                            \
        BY_WIDTH(score_tile(H, W, tile, values, q, scores))                                              \
    }                                                                                            \
    static void sum_##H(int wide, const tile_view *tiles, size_t offset, int count,              \
                        const coded *w, float *out)                                    \
    {                                                                                            \
        BY_WIDTH(sum_heads(H, W, tiles, offset, count, w, out))                            \
    }
TILED(1) TILED(2) TILED(3) TILED(4)

typedef void (*tile_scorer)(int, const uint8_t *, const uint8_t *, const coded *, float *);
typedef void (*tile_summer)(int, const tile_view *, size_t, int, const coded *, float *);
static const tile_scorer scorers[] = {score_1, score_2, score_3, score_4};
static const tile_summer summers[] = {sum_1, sum_2, sum_3, sum_4};

/* The queries of a bundle as codes; `early`: turned back to meet the sinks. */
static void ask_tiles(const past *p, const float *in, const bundle *b, int early, coded *out)
{
    const kf_op *op = p->op;
    int wide = kept_width(op->width);
    for (int h = 0; h < b->heads; h++) {
        float q[KF_WIDEST + LANES] = {0};
        memcpy(q, in + (b->head + h) * op->width, op->width * sizeof(float));
        if (early) turn(op, p->step, p->row, q);
        vf most = {0}, odd = {0};
        vi totals[PLANES] = {0};
        for (int i = 0; i < wide; i += LANES) {
            most = larger(most, absolute(load(q + i)));
            odd += load(q + i) * 0.0f;
        }
        float largest = max_lanes(most), inverse = largest > 0x1p-100f ? FINEST / largest : 0;
        for (int i = 0; i < wide; i += LANES)
            to_planes(load(q + i), inverse, out[h].planes[0] + i, out[h].planes[1] + i, totals);
        for (int i = 0; i < PLANES; i++) out[h].totals[i] = sum_whole(totals[i]);
        out[h].scale = largest / FINEST * op->scale + sum_lanes(odd);
    }
}

typedef struct {
    coded weights[BUNDLE];
    float maxima[BUNDLE], totals[BUNDLE];
    float scores[BUNDLE * CHUNK_SLOTS], sums[BUNDLE * KF_WIDEST];
    int8_t codes[BUNDLE][PLANES][CHUNK_SLOTS];
} tile_state;

/* Softmax so far of one head: scores become weights and take their values' scales along, in two
 * planes; what was summed before shrinks to the new maximum. */
static void weigh_tiles(const kf_op *op, const tile_view *tiles, int count, int head, size_t scales,
                        int h, tile_state *s)
{
    float *scores = s->scores + h * CHUNK_SLOTS;
    vf most = splat(-INFINITY), total = {0}, largest = {0}, odd = {0};
    vi order;
    for (int l = 0; l < LANES; l++) order[l] = l;
    for (int t = 0; t < count; t++)
        for (int lane = 0; lane < TILE; lane += LANES) {
            vi at = order + lane;
            vf v = load(scores + t * TILE + lane);
            if (op->cap > 0) v = op->cap * hyperbolic_tangent(v / op->cap);
            if (op->slopes)
                v -= op->slopes[head] * from_int(tiles[t].length - 1 - tiles[t].at - at);
            if (tiles[t].from > 0 || tiles[t].to < TILE) {
                vi visible = (at >= tiles[t].from) & (at < tiles[t].to);
                v = (vf)(((vi)v & visible) | ((vi)splat(-INFINITY) & ~visible));
            }
            most = larger(most, v);
            store(scores + t * TILE + lane, v);
        }
    float new = max_lanes(most), old = s->maxima[h];
    if (old > new) new = old;
    for (int t = 0; t < count; t++)
        for (int lane = 0; lane < TILE; lane += LANES) {
            int at = t * TILE + lane;
            vf v = power_of_two((load(scores + at) - new) * 1.44269504f);
            total += v;
            vf scale = load((const float *)(tiles[t].values + scales) + lane);
            if (tiles[t].from > 0 || tiles[t].to < TILE) scale = (vf)((vi)scale & (v != 0.0f));
            v *= scale;
            largest = larger(largest, v);
            odd += v * 0.0f;
            store(scores + at, v);
        }
    float shrink = old == -INFINITY ? 0 : exponential(splat(old - new))[0];
    s->totals[h] = s->totals[h] * shrink + sum_lanes(total);
    s->maxima[h] = new;
    int line = kept_width(op->width);
    if (shrink != 1)
        for (int i = 0; i < line; i += LANES)
            store(s->sums + h * line + i, load(s->sums + h * line + i) * shrink);
    coded *w = s->weights + h;
    vi totals[PLANES] = {0};
    float bound = max_lanes(largest), inverse = bound > 0x1p-100f ? FINEST / bound : 0;
    for (int at = 0; at < count * TILE; at += LANES)
        to_planes(load(scores + at), inverse, w->planes[0] + at, w->planes[1] + at, totals);
    for (int i = 0; i < PLANES; i++) w->totals[i] = sum_whole(totals[i]);
    w->scale = bound / FINEST + sum_lanes(odd);
}

/* Where tiles [from, from + count) of a range lie, and which of their slots are seen. */
static void find_tiles(const past *p, tile_range range, int from, int count, tile_view *out)
{
    const kf_op *op = p->op;
    size_t bytes = tile_bytes(op->width) * op->kv_heads;
    for (int i = 0; i < count; i++) {
        int early = from + i < range.early;
        int number = early ? from + i : from + i - range.early + range.first, at = number * TILE;
        int start = early ? 0 : p->view.start, end = early ? p->view.sinks : p->length;
        int shift = op->page_shift, in_page = at & ((1 << shift) - 1);
        size_t tile = (((size_t)p->pages[at >> shift] << shift) + in_page) / TILE;
        out[i] = (tile_view){(const uint8_t *)op->keys + tile * bytes,
                             (const uint8_t *)op->values + tile * bytes, at,
                             start > at ? start - at : 0, end - at < TILE ? end - at : TILE,
                             early ? kf_nearest(op, p->length) : p->length};
    }
}

/* Tiles [from, to) for the heads of a bundle. */
static void attend_tiles(const past *p, const float *in, const bundle *b, tile_range range, int from,
                         int to, float *const *out)
{
    const kf_op *op = p->op;
    int wide = kept_width(op->width), share = b->heads / b->groups;
    size_t each = tile_bytes(op->width);
    int8_t codes[BUNDLE][PLANES][KF_WIDEST];
    coded queries[BUNDLE];
    tile_view tiles[CHUNK_TILES];
    tile_state s;
    memset(s.sums, 0, b->heads * wide * sizeof(float));
    for (int h = 0; h < b->heads; h++) {
        s.maxima[h] = -INFINITY, s.totals[h] = 0;
        queries[h] = (coded){0, {0}, {codes[h][0], codes[h][1]}};
        s.weights[h] = (coded){0, {0}, {s.codes[h][0], s.codes[h][1]}};
    }
    int early = op->rotated ? range.early : 0;
    for (int base = from, n; base < to; base += n) {
        int end = base < early && early < to ? early : to;
        int chunks = (end - base + CHUNK_TILES - 1) / CHUNK_TILES; /* of one size */
        n = (end - base + chunks - 1) / chunks;
        if (base == from || base == early) ask_tiles(p, in, b, base < early, queries);
        find_tiles(p, range, base, n, tiles);
        for (int t = 0; t < n; t++)
            for (int h = 0, taken; h < b->heads; h += taken) {
                taken = share - h % share < HEADS ? share - h % share : HEADS;
                size_t at = b->offset + h / share * each;
                scorers[taken - 1](wide, tiles[t].keys + at, tiles[t].values + at, queries + h, s.scores + h * CHUNK_SLOTS + t * TILE);
            }
        for (int h = 0; h < b->heads; h++)
            weigh_tiles(op, tiles, n, b->head + h, b->offset + h / share * each + (size_t)TILE * wide, h,
                        &s);
        for (int h = 0, taken; h < b->heads; h += taken) {
            taken = share - h % share < HEADS ? share - h % share : HEADS;
            summers[taken - 1](wide, tiles, b->offset + h / share * each, n, s.weights + h,
                               s.sums + h * wide);
        }
    }
    for (int h = 0; h < b->heads; h++) {
        out[h][0] = s.maxima[h], out[h][1] = s.totals[h];
        memcpy(out[h] + KF_HEAD, s.sums + h * wide, wide * sizeof(float));
    }
}

static void attend_tile_span(const kf_op *op, const kf_step *step, int row, int number, int span)
{
    past p = {op, step, kf_visible(op, step, row), NULL, row, step->lengths[row]};
    p.pages = step->tables[op->table] + step->owners[row] * step->table_strides[op->table];
    tile_range range = tiles_of(p.view, p.length);
    int size = span_tiles(range.count), from = span * size;
    int to = from + size < range.count ? from + size : range.count;
    bundle b = bundle_at(op, number);
    float *out[BUNDLE];
    for (int h = 0; h < b.heads; h++) out[h] = partial_at(op, row, b.head + h, span);
    attend_tiles(&p, op->in + row * op->in_stride, &b, range, from, to, out);
}
