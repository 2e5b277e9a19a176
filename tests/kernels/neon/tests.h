#pragma once

#include "kernels.h"

void test_products(const sparseinfer::Kernels &kernels);
void test_ffns(const sparseinfer::Kernels &kernels);
void test_decoders(const sparseinfer::Kernels &kernels);
void test_candidates(const sparseinfer::Kernels &kernels);
