/* Activation functions on vectors. */
#ifndef KF_ACTIVATIONS_H
#define KF_ACTIVATIONS_H

#include "simd.h"

enum kf_activation {
    KF_IDENTITY, KF_RELU, KF_RELU2, KF_GELU, KF_GELU_TANH, KF_QUICK_GELU, KF_SILU, KF_SIGMOID,
    KF_TANH
};

INLINE vf activated(const int kind, vf x)
{
    switch (kind) {
    case KF_RELU: return larger(x, (vf){0});
    case KF_RELU2: return larger(x, (vf){0}) * larger(x, (vf){0});
    case KF_GELU: return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    case KF_GELU_TANH:
        return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
    case KF_QUICK_GELU: return x * sigmoid(1.702f * x);
    case KF_SILU: return x * sigmoid(x);
    case KF_SIGMOID: return sigmoid(x);
    case KF_TANH: return hyperbolic_tangent(x);
    default: return x;
    }
}

#endif
