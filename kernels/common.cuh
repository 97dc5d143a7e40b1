// What the kernels of spike detection share: integers of fixed width, indices, and loads of samples.

typedef unsigned char u8;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
static_assert(sizeof(i32) == 4 && sizeof(u32) == 4, "fixed-width integers");
static_assert(sizeof(i64) == 8 && sizeof(u64) == 8, "fixed-width integers");

// Threads of a block. It is known to the compiler, or loops over a tile would not be unrolled.
#ifndef THREADS
#define THREADS 128
#endif

// Values that a thread has on their way from memory at once. With a single one, memory is waited for
// most of the time: its latency, some 700 ns, needs about 25 KB on their way per multiprocessor.
#define LOADS 8

__device__ i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
__device__ i64 larger(i64 a, i64 b) { return a > b ? a : b; }

// 64-bit: a long segment of many channels has more samples than a 32-bit index can count.
__device__ i64 this_thread() { return (i64)blockIdx.x * THREADS + threadIdx.x; }
__device__ i64 all_threads() { return (i64)gridDim.x * THREADS; }

// Load x[from] .. x[to-1] with all threads of the block. keep(k, j, value) is called with each value,
// which is x[k + j * THREADS]; j, below LOADS, is known to the compiler. Neighbouring threads load
// neighbouring values, and all loads of a round begin before any of their values is used.
template <class Value, class Keep>
__device__ void load_all(const Value *__restrict__ x, i32 from, i32 to, Keep keep) {
  i32 k = from + (i32)threadIdx.x;
  for (i32 end = from + LOADS * THREADS; end <= to; end += LOADS * THREADS) {
    Value loaded[LOADS];
    for (i32 j = 0; j < LOADS; ++j) {
      loaded[j] = x[k + j * THREADS];
    }
    for (i32 j = 0; j < LOADS; ++j) {
      keep(k, j, loaded[j]);
    }
    k += LOADS * THREADS;
  }
  for (; k < to; k += THREADS) {
    keep(k, 0, x[k]);
  }
}

// Where value k of a tile lies in shared memory: in rows of ROW values. With a word of padding for
// each, threads that look at rows of their own read from different banks.
template <i32 ROW>
__device__ i32 place_of(i32 k) {
  return k / ROW * (ROW + 1) + k % ROW;
}

// Load x[from] .. x[to-1] to their places in shared memory.
template <i32 ROW>
__device__ void load_rows(const float *__restrict__ x, i32 from, i32 to, float *rows) {
  load_all(x, from, to, [&](i32 k, i32 j, float value) {
    const i32 row_step = THREADS / ROW * (ROW + 1);
    rows[THREADS % ROW == 0 ? place_of<ROW>(k) + j * row_step : place_of<ROW>(k + j * THREADS)] =
        value;
  });
}
