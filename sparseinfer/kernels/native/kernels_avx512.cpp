#define SPARSEINFER_ISA avx512
#include "kernels.inl"
