// Compiles a kernel source of kernels/ as C++17 for the processor: what CUDA declares, as variables.
//
// A translation unit includes this file, then the .cu, then says LAUNCHER(kernel) for each kernel.
// launch_<kernel>(grid, block, params) takes its arguments as cuLaunchKernel does: an array of
// pointers to the values. The threads run one after the other, forwards or backwards, so that a
// result which depends on their order shows; kernels must not need __syncthreads or shared memory.
#pragma once

#include <cmath>
#include <cstddef>
#include <utility>

#define __global__
#define __device__ static inline

struct ShimIndex {
  unsigned int x, y, z;
};
static ShimIndex threadIdx, blockIdx, blockDim, gridDim;

static inline int __popc(unsigned int bits) { return __builtin_popcount(bits); }

// One thread at a time: whatever it does is atomic.
template <class Number>
static inline Number atomicAdd(Number *at, Number more) {
  const Number before = *at;
  *at += more;
  return before;
}

static inline unsigned int atomicOr(unsigned int *at, unsigned int more) {
  const unsigned int before = *at;
  *at |= more;
  return before;
}

// Set from outside: nonzero runs the threads from the last to the first.
extern "C" {
int shim_backwards = 0;
}

template <class... Arguments, std::size_t... I>
void shim_call(void (*kernel)(Arguments...), void **params, std::index_sequence<I...>) {
  kernel(*static_cast<Arguments *>(params[I])...);
}

template <class... Arguments>
void shim_launch(
    void (*kernel)(Arguments...), unsigned int grid, unsigned int block, void **params) {
  gridDim = {grid, 1, 1};
  blockDim = {block, 1, 1};
  const unsigned long long threads = static_cast<unsigned long long>(grid) * block;
  for (unsigned long long t = 0; t < threads; ++t) {
    const unsigned long long thread = shim_backwards ? threads - 1 - t : t;
    blockIdx = {static_cast<unsigned int>(thread / block), 0, 0};
    threadIdx = {static_cast<unsigned int>(thread % block), 0, 0};
    shim_call(kernel, params, std::index_sequence_for<Arguments...>{});
  }
}

#define LAUNCHER(kernel)                                                          \
  extern "C" void launch_##kernel(unsigned int grid, unsigned int block, void **params) { \
    shim_launch(kernel, grid, block, params);                                     \
  }
