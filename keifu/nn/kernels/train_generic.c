/* Training kernels in plain C vectors. */
#define KF_ISA 0
#define KF_TABLE kf_train_generic
#include "train_isa.h"
