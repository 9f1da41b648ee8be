/* Steps that follow one another without anybody else: each reads what the one before it chose.
 *
 * Between two steps of a tape the caller's language costs more than it seems: the weights have passed
 * through all caches, so that it begins anew in memory, while the other threads fall asleep. */
#include <time.h>

#include "ops.h"

int kf_check(const kf_op *ops, int count, const kf_step *step);
int kf_run(const kf_op *ops, int count, const kf_step *step, int64_t scratch);
int kf_draw(kf_choice **asks, int count);

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int ends(const kf_stride *how, int32_t token)
{
    if (token < 0) return 1;
    for (int i = 0; i < how->end_count; i++)
        if (how->ends[i] == token) return 1;
    return 0;
}

/* Every row goes on, where it is, with the token that it chose. */
static void go_on(const kf_step *step, kf_choice **asks)
{
    for (int row = 0; row < step->rows; row++) {
        ((int32_t *)step->tokens)[row] = asks[row]->token;
        ((int32_t *)step->positions)[row]++;
        ((int32_t *)step->lengths)[row]++;
        asks[row]->place++;
    }
}

/* At least one step, in which all rows are chosen and row i asks asks[i]. Returns 0; -1 where memory
 * or threads cannot be had; or 1 + the number of the check that a step would fail. */
int kf_go_on(const kf_op *checks, int check_count, const kf_op *ops, int count, const kf_step *step,
             int64_t scratch, kf_choice **asks, kf_stride *how)
{
    double began = now();
    for (how->made = 0; how->made < how->most;) {
        if (how->made) go_on(step, asks);
        int wrong = kf_check(checks, check_count, step), last = 0;
        if (wrong) return wrong;
        if (kf_run(ops, count, step, scratch)) return -1;
        if (kf_draw(asks, step->rows)) /* no threads to be had: one by one */
            for (int row = 0; row < step->rows; row++) kf_draw(&asks[row], 1);
        int32_t *tokens = how->tokens + (int64_t)how->made++ * step->rows;
        for (int row = 0; row < step->rows; row++) {
            tokens[row] = asks[row]->token;
            last |= ends(how, tokens[row]);
        }
        double one_more = (now() - began) * (how->made + 1) / how->made;
        if (last || *(const volatile int32_t *)how->hurry || one_more > how->seconds) break;
    }
    return 0;
}
