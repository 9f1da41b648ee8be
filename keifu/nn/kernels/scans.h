/* Scans and short filters over ragged rows, tokens one after another, channels side by side.
 *
 * A vector holds neighbouring channels; a row's state stays in registers or the first cache while
 * its tokens pass. */
#include "activations.h"
#include "scan.h"

/* `count` channels of a row from `at` on, at most LANES. */
INLINE void selective_row(const kf_scan *s, int64_t row, int64_t at, const int states,
                          const int count)
{
    vf h[KF_STATES], pole[KF_STATES], d = load_some(s->d + at, count);
    float *state = s->state + kf_slot(s->slots, row) * states * s->inner + at;
    for (int n = 0; n < states; n++) {
        h[n] = load_some(state + n * s->inner, count);
        pole[n] = load_some(s->poles + n * s->inner + at, count);
    }
    for (int64_t t = s->offsets[row]; t < s->offsets[row + 1]; t++) {
        const float *b = s->b + t * s->b_stride, *c = s->c + t * s->c_stride;
        vf x = load_some(s->x + t * s->x_stride + at, count);
        vf dt = load_some(s->dt + t * s->dt_stride + at, count);
        if (s->raw) dt = softplus(dt);
        vf put = dt * x, y = d * x;
        for (int n = 0; n < states; n++) {
            h[n] = exponential(dt * pole[n]) * h[n] + put * b[n];
            y += h[n] * c[n];
        }
        if (s->gate) {
            vf gate = load_some(s->gate + t * s->gate_stride + at, count);
            y = y * gate * sigmoid(gate);
        }
        store_some(s->y + t * s->y_stride + at, y, count);
    }
    for (int n = 0; n < states; n++) store_some(state + n * s->inner, h[n], count);
}

/* Channels first to end of all rows. */
static void scan_selective(const kf_scan *s, int64_t first, int64_t end)
{
    for (int64_t row = 0; row < s->rows; row++) {
        for (int64_t at = first; at < end; at += LANES) {
            if (end - at < LANES) selective_row(s, row, at, s->states, (int)(end - at));
            else if (s->states == 16) selective_row(s, row, at, 16, LANES);
            else selective_row(s, row, at, s->states, LANES);
        }
    }
}

INLINE void filter_row(const kf_filter *f, int64_t row, int64_t at, const int count)
{
    const int before = f->taps - 1;
    float *tail = f->tail + kf_slot(f->slots, row) * before * f->inner + at;
    vf held[KF_TAPS], weight[KF_TAPS], bias = {0};
    if (f->bias) bias = load_some(f->bias + at, count);
    for (int j = 0; j < f->taps; j++) weight[j] = load_some(f->weight + j * f->inner + at, count);
    for (int j = 0; j < before; j++) held[j] = load_some(tail + j * f->inner, count);
    for (int64_t t = f->offsets[row]; t < f->offsets[row + 1]; t++) {
        vf x = load_some(f->x + t * f->x_stride + at, count), y = bias + weight[before] * x;
        for (int j = 0; j < before; j++) y += weight[j] * held[j];
        for (int j = 1; j < before; j++) held[j - 1] = held[j];
        if (before) held[before - 1] = x;
        store_some(f->y + t * f->y_stride + at, activated(f->act, y), count);
    }
    for (int j = 0; j < before; j++) store_some(tail + j * f->inner, held[j], count);
}

/* y_t = bias + sum_j w_j x_(t - taps + 1 + j), the inputs before a row from its tail, which takes
 * the row's last inputs. */
static void scan_filtered(const kf_filter *f, int64_t first, int64_t end)
{
    for (int64_t row = 0; row < f->rows; row++) {
        for (int64_t at = first; at < end; at += LANES) {
            if (end - at < LANES) filter_row(f, row, at, (int)(end - at));
            else filter_row(f, row, at, LANES);
        }
    }
}
