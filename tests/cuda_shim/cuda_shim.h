// Compiles a kernel source of kernels/ as C++17 for the processor: what CUDA declares, as variables.
//
// A translation unit includes this file, then the .cu, then says LAUNCHER(kernel, waits) for each
// kernel; waits is 1 where it calls __syncthreads. launch_<kernel>(grid, block, params) takes its
// arguments as cuLaunchKernel does: an array of pointers to the values. The blocks run one after the
// other; a block's threads take turns, each until it ends or waits for the others at __syncthreads,
// forwards or backwards, so that a result which depends on their order shows. Shared memory is
// filled with nonsense before every block.
#pragma once

// Set by whoever compiles, as for CUDA; without it blocks may have any number of threads.
#ifdef THREADS
constexpr unsigned int SHIM_THREADS = THREADS;
#else
constexpr unsigned int SHIM_THREADS = 0;
#endif

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__ static inline
// One block runs at a time, so all of them share the same variables.
#define __shared__ static __attribute__((section("shim_shared")))

struct ShimIndex {
  unsigned int x, y, z;
};
static ShimIndex threadIdx, blockIdx, blockDim, gridDim;

// Set from outside: nonzero runs the threads from the last to the first.
extern "C" {
int shim_backwards = 0;
// The linker's names for where the section begins and ends; absent where nothing is shared.
extern char __start_shim_shared[] __attribute__((weak));
extern char __stop_shim_shared[] __attribute__((weak));
}

constexpr std::size_t SHIM_STACK = 64 * 1024;

// A thread of a block: a stack of its own, on which it runs kernel after kernel.
struct ShimThread {
  ucontext_t begin;
  jmp_buf waits;
  std::unique_ptr<char[]> stack{new char[SHIM_STACK]};
  bool begun = false;
  bool done = false;
};

struct ShimCall {
  void (*run)(void *kernel, void **params);
  void *kernel;
  void **params;
};

static std::vector<std::unique_ptr<ShimThread>> shim_threads;
static jmp_buf shim_scheduler;
static unsigned int shim_current;
static bool shim_may_wait;
static ShimCall shim_now;

// Let the other threads have their turns. Jumps, since swapcontext asks the system every time.
__attribute__((noinline)) static void shim_wait() {
  if (_setjmp(shim_threads[shim_current]->waits) == 0) {
    _longjmp(shim_scheduler, 1);
  }
}

static void shim_thread() {
  for (;;) {
    shim_now.run(shim_now.kernel, shim_now.params);
    shim_threads[shim_current]->done = true;
    shim_wait();
  }
}

__attribute__((noinline)) static void shim_turn() {
  if (_setjmp(shim_scheduler) == 0) {
    ShimThread &thread = *shim_threads[shim_current];
    if (thread.begun) {
      _longjmp(thread.waits, 1);
    }
    thread.begun = true;
    setcontext(&thread.begin);
  }
}

// Only kernels that need it call it.
[[maybe_unused]] static void __syncthreads() {
  if (!shim_may_wait) {
    std::fputs("cuda_shim: __syncthreads in a kernel that was said not to wait\n", stderr);
    std::abort();
  }
  shim_wait();
}

// Threads take turns only at barriers: plain operations are atomic.
template <class Value>
static inline Value atomicAdd(Value *at, Value more) {
  const Value before = *at;
  *at = before + more;
  return before;
}

template <class Value>
static inline Value atomicMin(Value *at, Value other) {
  const Value before = *at;
  *at = other < before ? other : before;
  return before;
}

template <class Value>
static inline Value atomicOr(Value *at, Value bits) {
  const Value before = *at;
  *at = before | bits;
  return before;
}

[[maybe_unused]] static inline int __popc(unsigned int bits) { return __builtin_popcount(bits); }

// The bits of a floating-point number as an integer, and back.
template <class To, class From>
static inline To shim_bits(From value) {
  To bits;
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

[[maybe_unused]] static inline unsigned int __float_as_uint(float x) {
  return shim_bits<unsigned int>(x);
}
[[maybe_unused]] static inline float __uint_as_float(unsigned int x) { return shim_bits<float>(x); }
[[maybe_unused]] static inline long long __double_as_longlong(double x) {
  return shim_bits<long long>(x);
}

// Let every thread of the block run up to its next barrier or its end; false when all have ended.
static bool shim_round(unsigned int block) {
  unsigned int ended = 0;
  for (unsigned int turn = 0; turn < block; ++turn) {
    shim_current = shim_backwards ? block - 1 - turn : turn;
    threadIdx = {shim_current, 0, 0};
    shim_turn();
    ended += shim_threads[shim_current]->done ? 1 : 0;
  }
  if (ended != 0 && ended != block) {
    std::fputs("cuda_shim: some threads of a block ended, others wait at __syncthreads\n", stderr);
    std::abort();
  }
  return ended == 0;
}

static void shim_block(unsigned int block) {
  if (__start_shim_shared != nullptr) {
    std::memset(__start_shim_shared, 0x5A, __stop_shim_shared - __start_shim_shared);
  }
  if (!shim_may_wait) {
    for (unsigned int turn = 0; turn < block; ++turn) {
      threadIdx = {shim_backwards ? block - 1 - turn : turn, 0, 0};
      shim_now.run(shim_now.kernel, shim_now.params);
    }
    return;
  }
  for (unsigned int t = 0; t < block; ++t) {
    shim_threads[t]->done = false;
  }
  while (shim_round(block)) {
  }
}

static void shim_threads_for(unsigned int block) {
  while (shim_threads.size() < block) {
    shim_threads.push_back(std::make_unique<ShimThread>());
    ShimThread &thread = *shim_threads.back();
    getcontext(&thread.begin);
    thread.begin.uc_stack.ss_sp = thread.stack.get();
    thread.begin.uc_stack.ss_size = SHIM_STACK;
    thread.begin.uc_link = nullptr;
    makecontext(&thread.begin, shim_thread, 0);
  }
}

template <class... Arguments, std::size_t... I>
void shim_call(void (*kernel)(Arguments...), void **params, std::index_sequence<I...>) {
  kernel(*static_cast<Arguments *>(params[I])...);
}

template <class... Arguments>
void shim_run(void *kernel, void **params) {
  shim_call(
      reinterpret_cast<void (*)(Arguments...)>(kernel), params,
      std::index_sequence_for<Arguments...>{});
}

template <class... Arguments>
void shim_launch(
    void (*kernel)(Arguments...), bool waits, unsigned int grid, unsigned int block,
    void **params) {
  if (SHIM_THREADS != 0 && block != SHIM_THREADS) {
    std::fputs("cuda_shim: a block has not the THREADS for which it was compiled\n", stderr);
    std::abort();
  }
  shim_now = {shim_run<Arguments...>, reinterpret_cast<void *>(kernel), params};
  shim_may_wait = waits;
  shim_threads_for(waits ? block : 0);
  gridDim = {grid, 1, 1};
  blockDim = {block, 1, 1};
  for (unsigned int turn = 0; turn < grid; ++turn) {
    blockIdx = {shim_backwards ? grid - 1 - turn : turn, 0, 0};
    shim_block(block);
  }
}

#define LAUNCHER(kernel, waits)                                                           \
  extern "C" void launch_##kernel(unsigned int grid, unsigned int block, void **params) { \
    shim_launch(kernel, waits, grid, block, params);                                      \
  }
