/* Runs a tape: its operations in order, on all threads, with a barrier where one needs another. */
#include "pool.h"

static const kf_isa *chosen;

static const kf_isa *level(int number)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (number == 2 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &kf_avx512;
    if (number == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
        && __builtin_cpu_supports("f16c"))
        return &kf_avx2;
#endif
    return number == 0 ? &kf_generic : NULL;
}

const kf_isa *kf_kernels(void)
{
    for (int number = 2; !chosen; number--) chosen = level(number);
    return chosen;
}

/* The instruction set by number, or NULL where the machine lacks it. */
const char *kf_level(int number)
{
    const kf_isa *isa = level(number);
    return isa ? isa->name : NULL;
}

const char *kf_current(void) { return kf_kernels()->name; }

/* Use one instruction set from now on: 0, or -1 where the machine lacks it. */
int kf_force(int number)
{
    const kf_isa *isa = level(number);
    if (isa) chosen = isa;
    return isa ? 0 : -1;
}

int kf_sizes(int what)
{
    return what == 0 ? (int)sizeof(kf_op) : what == 1 ? (int)sizeof(kf_step)
        : what == 2 ? (int)sizeof(kf_segment)
        : what == 3 ? (int)sizeof(kf_choice) : (int)sizeof(kf_stride);
}

/* Bytes of a row of `cols` activations as 8-bit codes. */
int64_t kf_codes_size(int64_t cols) { return (int64_t)kf_codes_bytes(cols); }

static int within(const int32_t *values, int count, int64_t limit)
{
    for (int i = 0; i < count; i++)
        if (values[i] < 0 || values[i] >= limit) return 0;
    return 1;
}

static int pages_within(const kf_op *op, const kf_step *step)
{
    const int32_t *table = step->tables[op->table];
    int64_t stride = step->table_strides[op->table];
    if (!table) return 0;
    for (int row = 0; row < step->rows; row++) {
        int length = step->lengths[row], owner = step->owners[row];
        if (length < 1 || (length - 1) >> op->page_shift >= stride) return 0;
        if (owner < 0 || owner >= step->requests) return 0;
        kf_view view = kf_visible(op, step, row);
        const int32_t *pages = table + owner * stride;
        int sinks = (view.sinks + (1 << op->page_shift) - 1) >> op->page_shift;
        int first = view.start >> op->page_shift, last = (length - 1) >> op->page_shift;
        if (view.start >= length || !within(pages, sinks, op->limit)) return 0;
        if (!within(pages + first, last - first + 1, op->limit)) return 0;
    }
    return 1;
}

/* Requests follow one another over all rows, each in a slot of its own. */
static int slots_within(const kf_op *op, const kf_step *step)
{
    const int32_t *offsets = step->offsets, *slots = step->slots;
    if (step->runs < 1 || offsets[0] != 0 || offsets[step->runs] != step->rows) return 0;
    for (int run = 0; run < step->runs; run++) {
        if (offsets[run] >= offsets[run + 1]) return 0;
        for (int other = 0; other < run; other++)
            if (slots[other] == slots[run]) return 0;
    }
    return within(slots, step->runs, op->limit);
}

/* 0, or 1 + the number of the first operation that this step would lead out of its memory. */
int kf_check(const kf_op *ops, int count, const kf_step *step)
{
    uint32_t seen = 0;
    int64_t slots = -1;
    for (int i = 0; i < count; i++) {
        const kf_op *op = &ops[i];
        int fits = 1, by_row = op->flags & KF_BY_ROW;
        if (op->code == KF_EMBED && by_row) fits = within(step->tokens, step->rows, op->limit);
        else if (op->code == KF_EMBED || ((op->code == KF_ROTARY || op->code == KF_STORE)
                                          && op->rotated && !by_row))
            fits = within(step->positions, step->rows, op->code == KF_EMBED ? op->limit - (int64_t)op->offset : op->limit);
        else if (op->code == KF_SELECT) fits = within(step->chosen, step->count, step->rows);
        if (op->state && op->limit != slots) fits = slots_within(op, step), slots = op->limit;
        if (op->code == KF_ATTEND && !(seen >> op->table & 1)) {
            seen |= 1u << op->table;
            fits = fits && pages_within(op, step);
        }
        if (!fits) return i + 1;
    }
    return 0;
}

typedef struct {
    const kf_op *ops;
    int count;
    const kf_step *step;
} program;

static void run(void *argument, const kf_worker *worker)
{
    const program *p = argument;
    const kf_kernel *kernels = kf_kernels()->kernels;
    for (int i = 0; i < p->count; i++) {
        const kf_op *op = &p->ops[i];
        if (i && !(op->flags & KF_FREE)) kf_barrier(worker);
        kernels[op->code](op, p->step, worker);
    }
}

/* `scratch`: floats a thread needs for one group of the widest packed weight. */
int kf_run(const kf_op *ops, int count, const kf_step *step, int64_t scratch)
{
    program p = {ops, count, step};
    return kf_together(run, &p, (size_t)scratch);
}
