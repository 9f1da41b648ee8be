/* Row-wise pieces of training in bfloat16: what stands between the matrix products. */
#ifndef KF_TRAIN_H
#define KF_TRAIN_H

#include <stddef.h>
#include <stdint.h>

enum { KF_WIDEST = 1 << 14 }; /* keys of a row of scores */

/* What a kernel reads and writes; each says what is where. */
typedef struct {
    void *p[6];
    int64_t n[6];
    float f[4];
} kf_given;

typedef void (*kf_rows)(const kf_given *, int64_t first, int64_t end);
enum {
    KF_NORM,
    KF_NORM_BACK,
    KF_GATE,
    KF_GATE_BACK,
    KF_TURN,
    KF_SOFTMAX,
    KF_SOFTMAX_BACK,
    KF_ENTROPY,
    KF_KERNELS
};
typedef struct {
    kf_rows of[KF_KERNELS];
} kf_train_kernels;

#endif
