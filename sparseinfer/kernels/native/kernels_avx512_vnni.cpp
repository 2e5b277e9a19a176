#define SPARSEINFER_ISA avx512_vnni
#include "kernels.inl"
