/* What recurrences and short filters work on: arrays of floats, rows of tokens, strides in floats.
 *
 * A row of tokens is one request's; its state is entry slots[row] of `state`, or entry `row` where
 * slots is NULL, and is left as it is after the row's last token. */
#ifndef KF_SCAN_H
#define KF_SCAN_H

#include <stddef.h>
#include <stdint.h>

enum { KF_STATES = 256, KF_TAPS = 8 };

/* A selective scan: h = exp(dt pole) h + dt x b, y = c h + d x, times silu(gate) if there is one. */
typedef struct {
    const float *x, *dt, *b, *c, *gate; /* (tokens, inner); b and c (tokens, states) */
    const float *poles, *d;             /* (states, inner), (inner) */
    float *state, *y;                   /* (entries, states, inner), (tokens, inner) */
    const int32_t *offsets, *slots;     /* (rows + 1) where each row's tokens begin */
    int64_t x_stride, dt_stride, b_stride, c_stride, gate_stride, y_stride;
    int64_t rows, inner;
    int32_t states;
    int32_t raw; /* dt is softplus(dt) */
} kf_scan;

/* A causal filter of a few taps for each channel, then an activation. */
typedef struct {
    const float *x, *weight, *bias; /* (tokens, inner), (taps, inner), (inner) or NULL */
    float *tail, *y;                /* (entries, taps - 1, inner), (tokens, inner) */
    const int32_t *offsets, *slots;
    int64_t x_stride, y_stride, rows, inner;
    int32_t taps, act;
} kf_filter;

/* y = x W^T for few tokens, W in bfloat16 read once. */
typedef struct {
    const uint16_t *weight; /* (outputs, inputs) */
    const float *x;         /* (tokens, inputs) */
    float *y;               /* (tokens, outputs) */
    int64_t tokens, inputs, outputs;
} kf_product;

/* Each works on channels (or output columns) first to end. */
typedef struct {
    void (*selective)(const kf_scan *, int64_t first, int64_t end);
    void (*filtered)(const kf_filter *, int64_t first, int64_t end);
    void (*multiplied)(const kf_product *, int64_t first, int64_t end);
} kf_scan_kernels;

static inline int64_t kf_slot(const int32_t *slots, int64_t row)
{
    return slots ? slots[row] : row;
}

#endif
