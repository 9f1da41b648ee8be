/* The operations of a tape, the step that runs them, and one table of kernels per instruction set.
 *
 * `op`, `step` and `segment` are mirrored field by field in native.py. */
#ifndef KF_OPS_H
#define KF_OPS_H

#include "tile.h"

enum kf_code {
    KF_EMBED, KF_NORM, KF_QUANTISE, KF_LINEAR, KF_ROTARY, KF_STORE, KF_ATTEND, KF_MERGE,
    KF_ACTIVATE, KF_COMBINE, KF_SELECT, KF_FILTER, KF_SELECTIVE, KF_SSD, KF_LRU, KF_CODES
};

enum kf_flag {
    KF_ADD = 1,       /* add to what `out` holds */
    KF_CHOSEN = 2,    /* works on the step's chosen rows, not on all */
    KF_EXACT = 4,     /* float32 arithmetic on the decoded weights */
    KF_FREE = 8,      /* needs no barrier before it */
    KF_BY_ROW = 16,   /* indexed by the row of the step, not by its position */
    KF_FLOAT = 32,    /* state is float32, not bfloat16 */
    KF_LAYER = 64,    /* layer norm: the mean is taken off */
    KF_INTERLEAVED = 128, /* rotary pairs are neighbours */
    KF_EIGHT = 512,   /* state is 8-bit codes in tiles, not bfloat16 */
    KF_CACHED = 256,  /* sinks are as near as they lie in the cache, before the window */
};

enum kf_combination { KF_SUM, KF_SCALE, KF_SOFTCAP, KF_CLAMP };

/* Part of a weight matrix: `rows` rows that fill the output's columns from `first` on and meet the
 * input's from `from` on. */
typedef struct {
    const uint8_t *data;
    int64_t group_bytes;
    int32_t format, rows, cols, first, from;
} kf_segment;

typedef struct {
    int32_t code, flags, kind, width; /* width: columns of `in`, or of one head where heads > 0 */
    int32_t heads, kv_heads, rotated, table;
    int32_t window, sinks, page_shift, segments;
    int32_t states, groups; /* of a channel or head (of a filter: its taps); of heads */
    float eps, scale, cap, low, high, offset;
    const float *in, *other, *third;
    float *out;
    int64_t in_stride, other_stride, third_stride, out_stride; /* floats from a row to the next */
    uint8_t *codes;                              /* 8-bit copy of an activation */
    const float *weight, *bias, *cosines, *sines, *slopes;
    void *keys, *values;
    float *state;   /* entries in slots: what a request keeps of a recurrence */
    float *partial; /* attention: what each span of a row's past adds up to */
    const kf_segment *segment;
    int64_t limit; /* entries of a table, or slots, that an index must stay below */
} kf_op;

enum { KF_TABLES = 8 };

typedef struct {
    int32_t rows, count, runs, requests;       /* rows; chosen ones; runs in order; table rows */
    const int32_t *tokens, *positions;         /* a row: what and where it is */
    const int32_t *lengths, *starts, *owners;  /* slots up to its own; first it may see; table row */
    const int32_t *chosen;                     /* rows that `select` keeps */
    const int32_t *coarse;                     /* rows whose activations have one plane; or NULL */
    const int32_t *offsets, *slots;            /* (runs + 1) where requests begin; their slots */
    const int32_t *tables[KF_TABLES];          /* pages of each owner */
    int64_t table_strides[KF_TABLES];
} kf_step;

/* A thread's share of the work: thread `id` of `threads`, with memory of its own. */
typedef struct {
    int32_t id, threads;
    float *scratch; /* KF_SCRATCH floats a column of the widest packed weight in the tape */
} kf_worker;

enum { KF_SCRATCH = GROUP };

typedef void (*kf_kernel)(const kf_op *, const kf_step *, const kf_worker *);

/* A question: which token of a row of logits comes next. */
typedef struct {
    const float *logits;
    const int32_t *ids; /* whose they are; NULL: of 0, 1, 2 ... */
    int64_t count;
    uint64_t seed, place;            /* what the draw is made of */
    float temperature, top_p, min_p; /* temperature 0: the likeliest; 1, 0: keep all */
    int32_t top_k;                   /* 0: keep all */
    int32_t token;                   /* the answer; -1: none may come, -2: not a number */
} kf_choice;

/* Several steps one after another, each reading the tokens that the one before it chose. */
typedef struct {
    const int32_t *ends;     /* tokens after which somebody has to look */
    const int32_t *hurry;    /* not 0: somebody waits, so this step is the last; changes meanwhile */
    int32_t *tokens;         /* (most, rows) what was chosen */
    double seconds;          /* that all steps together may take, as far as can be told before */
    int32_t most, end_count;
    int32_t made;            /* steps that were taken */
} kf_stride;

typedef struct {
    const char *name;
    kf_kernel kernels[KF_CODES];
    /* Rows [first, last) of a group of 16 as floats, row by row. */
    void (*unpack)(int format, const uint8_t *group, int cols, int first, int last, float *out,
                   size_t stride);
    void (*narrow)(const float *in, uint16_t *out, size_t count);
    int32_t (*draw)(const kf_choice *);
} kf_isa;

extern const kf_isa kf_generic, kf_avx2, kf_avx512;

static inline int kf_rows(const kf_op *op, const kf_step *step)
{
    return op->flags & KF_CHOSEN ? step->count : step->rows;
}

/* Whether an operation's row is one whose activations have one plane of codes. */
static inline int kf_coarse(const kf_op *op, const kf_step *step, int64_t row)
{
    return step->coarse && step->coarse[op->flags & KF_CHOSEN ? step->chosen[row] : row];
}

/* This thread's part [first, last) of `total` equal pieces of work. */
static inline void kf_share(int64_t total, const kf_worker *w, int64_t *first, int64_t *last)
{
    *first = total * w->id / w->threads;
    *last = total * (w->id + 1) / w->threads;
}

/* The next `most` pieces of `total` equal ones that nobody took since the last barrier: first of this
 * thread's part, then of those of threads that are behind. 0: none is left. Threads run at the speed
 * of their processor; which one works on a piece is never the same twice. */
typedef struct { int64_t first, last; } kf_pieces;
int kf_take(const kf_worker *w, int64_t total, int64_t most, kf_pieces *taken);

/* Spans that a past of `seen` slots is cut into: a matter of the row alone, never of the batch. An
 * even number, since the most common number of threads is. */
enum { KF_CHUNK = 128, KF_SPANS = 16, KF_WIDEST = 512 /* head */, KF_HEAD = 16 };
#define KF_PARTIAL(width) (((width) + 31) / 32 * 32 + KF_HEAD) /* floats a span leaves */
static inline int kf_span(int seen)
{
    int spans = (seen + 2 * KF_CHUNK - 1) / (2 * KF_CHUNK) * 2;
    if (seen <= KF_CHUNK / 2) return KF_CHUNK / 2;
    if (spans > KF_SPANS) spans = KF_SPANS;
    return ((seen + spans - 1) / spans + 15) / 16 * 16;
}

/* Slots a row attends to: `sinks` first ones, then `start` to its own. */
typedef struct { int sinks, start, seen; } kf_view;
static inline kf_view kf_visible(const kf_op *op, const kf_step *step, int row)
{
    kf_view v;
    int length = step->lengths[row];
    v.start = op->window > 0 && length > op->window ? length - op->window : 0;
    if (step->starts && step->starts[row] > v.start) v.start = step->starts[row];
    v.sinks = op->sinks < v.start ? op->sinks : v.start;
    v.seen = v.sinks + length - v.start;
    return v;
}

/* How far a row of `length` slots is from the first one, as its sinks meet it. */
static inline int kf_nearest(const kf_op *op, int length)
{
    int most = op->window + op->sinks;
    return op->flags & KF_CACHED && length > most ? most : length;
}

#endif
