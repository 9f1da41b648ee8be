/* Kernels in plain C vectors: what every machine runs (128-bit vectors: SSE2, NEON). */
#define KF_ISA 0
#define KF_NAME "generic"
#define KF_TABLE kf_generic
#include "isa.h"
