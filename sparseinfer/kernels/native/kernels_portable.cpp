#define SPARSEINFER_ISA portable
#include "kernels.inl"
