/* Causal attention over paged state: who attends to what, and what becomes of it.
 *
 * The past of a row is cut into spans (kf_span) that threads share; each leaves its maximum, its
 * sum and its weighted values in `partial`, and `merge` puts a row's spans together in order. The
 * rows of a prompt go together and leave one span each. */

INLINE int spans_of(const kf_op *op, const kf_step *step, int row)
{
    kf_view view = kf_visible(op, step, row);
    int count = tiles_of(view, step->lengths[row]).count, size = span_tiles(count);
    if (in_run(step, row)) return 1;
    if (op->flags & KF_EIGHT) return (count + size - 1) / size;
    return (view.seen + kf_span(view.seen) - 1) / kf_span(view.seen);
}

/* Pieces of the work on `rows` rows that go together: their spans, one bundle of heads at a time. */
static int pieces_of(const kf_op *op, const kf_step *step, int row)
{
    return in_run(step, row) ? op->kv_heads : bundles_of(op) * spans_of(op, step, row);
}

static void attend_piece(const kf_op *op, const kf_step *step, int row, int rows, int piece)
{
    int spans = spans_of(op, step, row);
    if (in_run(step, row)) attend_rows(op, step, row, rows, piece);
    else if (op->flags & KF_EIGHT) attend_tile_span(op, step, row, piece / spans, piece % spans);
    else attend_span(op, step, row, piece / spans, piece % spans);
}

static void attend(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t total = 0;
    kf_pieces taken;
    for (int row = 0; row < step->rows; row += together(step, row)) total += pieces_of(op, step, row);
    while (kf_take(worker, total, 1, &taken)) {
        int row = 0, rows = together(step, row), pieces = pieces_of(op, step, row);
        while (taken.first >= pieces) {
            taken.first -= pieces, row += rows;
            rows = together(step, row), pieces = pieces_of(op, step, row);
        }
        attend_piece(op, step, row, rows, (int)taken.first);
    }
}

static void merge_head(const kf_op *op, int64_t row, int head, int spans, float *out)
{
    float most = -INFINITY, total = 0, sums[KF_WIDEST] = {0};
    int line = op_line(op);
    for (int s = 0; s < spans; s++) {
        float m = partial_at(op, row, head, s)[0];
        most = m > most ? m : most;
    }
    for (int s = 0; s < spans; s++) {
        const float *state = partial_at(op, row, head, s), *values = state + KF_HEAD;
        float weight = exponential(splat(state[0] - most))[0];
        total += weight * state[1];
        for (int i = 0; i < line; i += LANES) store(sums + i, load(sums + i) + weight * load(values + i));
    }
    from_pairs(!!(op->flags & (KF_FLOAT | KF_EIGHT)), sums, op->width, 1 / total, out);
}

static void merge(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, last;
    int blocks = op->heads * op->width / BLOCK, whole = op->width % BLOCK == 0;
    kf_share((int64_t)step->rows * op->heads, worker, &first, &last);
    for (int64_t i = first; i < last; i++) {
        int64_t row = i / op->heads, head = i % op->heads;
        float *out = op->out + row * op->out_stride + head * op->width;
        merge_head(op, row, head, spans_of(op, step, row), out);
        if (!op->codes || !whole) continue;
        kf_codes *codes = (kf_codes *)(op->codes + row * kf_codes_bytes(blocks * BLOCK));
        for (int b = 0; b < op->width / BLOCK; b++)
            quantise_block(out + b * BLOCK, codes + head * op->width / BLOCK + b,
                           kf_coarse(op, step, row));
    }
}

/* New keys and values go to the slot of their row: `in` keys, `other` values. Keys are rotated on
 * the way if there is a rotary table, and so are the queries at `out`. */
static void keep(const kf_op *op, const kf_step *step, const kf_worker *worker)
{
    int64_t first, last, all = op->heads + 2 * op->kv_heads;
    kf_share(all * step->rows, worker, &first, &last);
    for (int64_t i = first; i < last; i++) {
        int64_t row = i / all, head = i % all;
        if (head < op->heads) {
            if (op->rotated) turn(op, step, row, op->out + row * op->out_stride + head * op->width);
            continue;
        }
        int value = head >= op->heads + op->kv_heads;
        int64_t group = head - op->heads - (value ? op->kv_heads : 0);
        float line[KF_WIDEST];
        const float *from = value ? op->other + row * op->other_stride : op->in + row * op->in_stride;
        memcpy(line, from + group * op->width, op->width * sizeof(float));
        if (op->rotated && !value) turn(op, step, row, line);
        int at = step->lengths[row] - 1, mask = (1 << op->page_shift) - 1;
        const int32_t *pages = step->tables[op->table]
                               + step->owners[row] * step->table_strides[op->table];
        size_t slot = ((size_t)pages[at >> op->page_shift] << op->page_shift) + (at & mask);
        size_t offset = (slot * op->kv_heads + group) * op->width;
        void *state = value ? op->values : op->keys;
        if (op->flags & KF_EIGHT)
            keep_codes(line, op->width, value,
                       (uint8_t *)state + (slot / TILE * op->kv_heads + group) * tile_bytes(op->width),
                       slot % TILE);
        else if (op->flags & KF_FLOAT)
            memcpy((float *)state + offset, line, op->width * sizeof(float));
        else
            narrow(line, (uint16_t *)state + offset, op->width);
    }
}
