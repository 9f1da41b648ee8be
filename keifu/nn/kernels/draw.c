/* Choosing tokens for many rows at once, on all threads. */
#include "pool.h"

const kf_isa *kf_kernels(void);

typedef struct {
    kf_choice **asks;
    int count;
} questions;

static void answer(void *argument, const kf_worker *worker)
{
    const questions *q = argument;
    for (int i = worker->id; i < q->count; i += worker->threads)
        q->asks[i]->token = kf_kernels()->draw(q->asks[i]);
}

/* Answer all questions, each by itself: nothing depends on the others, nor on the threads. */
int kf_draw(kf_choice **asks, int count)
{
    questions q = {asks, count};
    if (count > 1) return kf_together(answer, &q, 0);
    answer(&q, &(kf_worker){0, 1, NULL});
    return 0;
}
