/* All scans for one instruction set: included once by each scans_*.c, which names it. */
#include "scans.h"

/* Output columns first to end; inputs are a multiple of 16. */
static void scan_multiplied(const kf_product *p, int64_t first, int64_t end)
{
    for (int64_t j = first; j < end; j++) {
        const uint16_t *row = p->weight + j * p->inputs;
        for (int64_t t = 0; t < p->tokens; t++) {
            const float *x = p->x + t * p->inputs;
            vf a = {0}, b = {0}; /* a row is one stream: what is fetched ahead is the next row */
            int64_t k = 0;
            for (; k + 2 * LANES <= p->inputs; k += 2 * LANES) {
                __builtin_prefetch(row + k + 2048);
                a += load(x + k) * (vf)(widen_halves(row + k) << 16);
                b += load(x + k + LANES) * (vf)(widen_halves(row + k + LANES) << 16);
            }
            for (; k < p->inputs; k += LANES) a += load(x + k) * (vf)(widen_halves(row + k) << 16);
            p->y[t * p->outputs + j] = sum_lanes(a + b);
        }
    }
}

const kf_scan_kernels KF_TABLE = {scan_selective, scan_filtered, scan_multiplied};
