// Sums of a recording's channels, from which their means are taken.
//
// Input: chunks of a segment, (channels, samples) float32, beginning at multiples of SUM_BLOCK.
// Output: (channels,) float64 sums, to which every chunk adds. NaN and infinity show up in them.
//
// The order is the CPU's, and the same for every chunking: blocks of SUM_BLOCK samples, one after
// another. Only within a block does it differ; there float64 sums of float32 values are nearly always
// exact, so that means agree to the last bit.

#include "common.cuh"

#ifndef SUM_BLOCK
#define SUM_BLOCK 128
#endif

// Blocks that a block of threads adds up together.
#ifndef SUM_TILE
#define SUM_TILE 32
#endif
static_assert(SUM_BLOCK >= 1 && SUM_TILE >= 1, "a tile holds a sample");

// Add up each block of SUM_BLOCK samples, one thread per block; the last block may be short.
//
// samples : samples[channel * pitch + i], n of them per channel
// sums    : (channels, blocks) float64; blocks = n / SUM_BLOCK, rounded up
extern "C" __global__ void sum_blocks(
    const float *__restrict__ samples, i64 pitch, i64 channels, i64 n, double *__restrict__ sums) {
  __shared__ float tile[SUM_TILE * (SUM_BLOCK + 1)];
  const i64 blocks = (n + SUM_BLOCK - 1) / SUM_BLOCK;
  const i64 tiles = (blocks + SUM_TILE - 1) / SUM_TILE;
  for (i64 t = blockIdx.x; t < channels * tiles; t += gridDim.x) {
    const i64 channel = t / tiles;
    const i64 block = (t - channel * tiles) * SUM_TILE;
    const i32 here = (i32)smaller(n - block * SUM_BLOCK, SUM_TILE * SUM_BLOCK);
    load_rows<SUM_BLOCK>(samples + channel * pitch + block * SUM_BLOCK, 0, here, tile);
    __syncthreads();
    for (i32 b = (i32)threadIdx.x; b < SUM_TILE && block + b < blocks; b += THREADS) {
      const i32 last = (i32)smaller(SUM_BLOCK, here - b * SUM_BLOCK);
      double sum = 0.0;
      for (i32 i = 0; i < last; ++i) {
        sum += (double)tile[b * (SUM_BLOCK + 1) + i];
      }
      sums[channel * blocks + block + b] = sum;
    }
    __syncthreads();
  }
}

// Add a chunk's block sums to the channels' totals, one after the other, a block of threads each.
//
// total : (channels,) float64, updated
extern "C" __global__ void sum_totals(
    i64 channels, i64 blocks, const double *__restrict__ sums, double *__restrict__ total) {
  // The threads fetch together what one of them then adds in order.
  const i32 most = LOADS * THREADS;
  __shared__ double some[most];
  for (i64 channel = blockIdx.x; channel < channels; channel += gridDim.x) {
    double sum = total[channel];
    for (i64 block = 0; block < blocks; block += most) {
      const i32 here = (i32)smaller(most, blocks - block);
      load_all(sums + channel * blocks + block, 0, here, [&](i32 k, i32 j, double value) {
        some[k + j * THREADS] = value;
      });
      __syncthreads();
      for (i32 b = 0; b < here && threadIdx.x == 0; ++b) {
        sum += some[b];
      }
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      total[channel] = sum;
    }
    __syncthreads();
  }
}
