#define SPARSEINFER_ISA avx2
#include "kernels.inl"
