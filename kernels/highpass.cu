// Causal IIR filter in second-order sections, parallel over time.
//
// Input: chunks of a segment, (channels, samples) float32 microvolts, and the state after the
// previous chunk. Output: the filtered chunk, float32, and the state after it.
//
// A section is the recursion that scipy.signal.sosfilt defines (direct form II transposed), in
// float64, rounded once. It is linear in its state: a block of HIGHPASS_BLOCK samples that starts
// from state s ends in A s + z. Here z is the state after the block if it starts from 0, and the
// matrix A, the same for all blocks, maps a state to that after HIGHPASS_BLOCK samples of silence.
// Hence
//     highpass_probe   z of every block, all at once
//     highpass_chain   the states between blocks, one after another: a 128th of the samples
//     highpass_run     all blocks again, from their true states
// Within a block every operation is that of the sequential filter; across blocks the state differs
// in rounding, by about 1e-16 of its value. Compile with --fmad=false: otherwise multiplications fuse
// with additions, and results differ by more.
//
// Blocks begin at the multiples of HIGHPASS_BLOCK of the chunk, so that chunks whose lengths are
// such multiples give the same samples as the whole, bit for bit. Only the last chunk of a segment
// may have another length: the state after it is not kept.
//
// Limit: device memory, read twice and written once; arithmetic where float64 is slow.

#include "common.cuh"

#ifndef HIGHPASS_BLOCK
#define HIGHPASS_BLOCK 128
#endif

// Sections of the filter.
#ifndef HIGHPASS_SECTIONS
#define HIGHPASS_SECTIONS 1
#endif

// Blocks that a block of threads filters together.
#ifndef HIGHPASS_TILE
#define HIGHPASS_TILE 32
#endif
static_assert(HIGHPASS_BLOCK >= 1 && HIGHPASS_TILE >= 1, "a tile holds a sample");
static_assert(HIGHPASS_SECTIONS >= 1 && HIGHPASS_SECTIONS <= 4, "the state fits into registers");

#define ROW (HIGHPASS_BLOCK + 1)
#define STATES (2 * HIGHPASS_SECTIONS)
#define AHEAD (2 * LOADS / STATES)  // blocks whose states are fetched at once

// Filter the samples x[0] .. x[count-1] in place, from state s, which is updated.
__device__ void filter_row(float *x, i32 count, double first, const double *sos, double *s) {
  for (i32 i = 0; i < count; ++i) {
    double v = (double)x[i] - first;
    for (i32 k = 0; k < HIGHPASS_SECTIONS; ++k) {
      const double *c = sos + 6 * k;  // b0 b1 b2 a0 a1 a2, a0 = 1
      const double y = c[0] * v + s[2 * k];
      s[2 * k] = c[1] * v - c[4] * y + s[2 * k + 1];
      s[2 * k + 1] = c[2] * v - c[5] * y;
      v = y;
    }
    x[i] = (float)v;
  }
}

// The work of a block of threads: up to HIGHPASS_TILE blocks of one channel.
struct Tile {
  i64 channel;
  i64 block;
  i32 samples;
};

__device__ Tile tile_at(i64 t, i64 n) {
  const i64 tiles = (n + HIGHPASS_TILE * HIGHPASS_BLOCK - 1) / (HIGHPASS_TILE * HIGHPASS_BLOCK);
  Tile tile;
  tile.channel = t / tiles;
  tile.block = (t - tile.channel * tiles) * HIGHPASS_TILE;
  tile.samples = (i32)smaller(n - tile.block * HIGHPASS_BLOCK, HIGHPASS_TILE * HIGHPASS_BLOCK);
  return tile;
}

__device__ i64 tiles_of(i64 channels, i64 n) {
  return channels *
         ((n + HIGHPASS_TILE * HIGHPASS_BLOCK - 1) / (HIGHPASS_TILE * HIGHPASS_BLOCK));
}

// Samples of a tile's row b.
__device__ i32 row_samples(Tile tile, i32 b) {
  return (i32)smaller(HIGHPASS_BLOCK, tile.samples - b * HIGHPASS_BLOCK);
}

// Find the state after each block that starts from state 0.
//
// samples : samples[channel * pitch + i], n of them per channel
// first   : (channels,) float32, subtracted from every sample
// sos     : (sections, 6) float64
// left    : (channels, blocks, states) float64; blocks = n / HIGHPASS_BLOCK, rounded up
extern "C" __global__ void highpass_probe(
    const float *__restrict__ samples, i64 pitch, i64 channels, i64 n,
    const float *__restrict__ first, const double *__restrict__ sos, double *__restrict__ left) {
  __shared__ float shared[HIGHPASS_TILE * ROW];
  const i64 blocks = (n + HIGHPASS_BLOCK - 1) / HIGHPASS_BLOCK;
  for (i64 t = blockIdx.x; t < tiles_of(channels, n); t += gridDim.x) {
    const Tile tile = tile_at(t, n);
    load_rows<HIGHPASS_BLOCK>(
        samples + tile.channel * pitch + tile.block * HIGHPASS_BLOCK, 0, tile.samples, shared);
    __syncthreads();
    for (i32 b = (i32)threadIdx.x; b * HIGHPASS_BLOCK < tile.samples; b += THREADS) {
      double s[STATES] = {};
      filter_row(shared + b * ROW, row_samples(tile, b), (double)first[tile.channel], sos, s);
      for (i32 k = 0; k < STATES; ++k) {
        left[(tile.channel * blocks + tile.block + b) * STATES + k] = s[k];
      }
    }
    __syncthreads();
  }
}

// Store the state before a block, and take the state s past it; z is from highpass_probe.
__device__ void pass_block(
    const double *__restrict__ silence, const double *z, double *__restrict__ entered, double *s) {
  double next[STATES];
  for (i32 k = 0; k < STATES; ++k) {
    entered[k] = s[k];
    double sum = z[k];
    for (i32 j = 0; j < STATES; ++j) {
      sum += silence[k * STATES + j] * s[j];
    }
    next[k] = sum;
  }
  for (i32 k = 0; k < STATES; ++k) {
    s[k] = next[k];
  }
}

// Find the state before each block, one thread per channel.
//
// silence : (states, states) float64, the state after a block of silence is silence @ state
// left    : from highpass_probe
// entered : (channels, blocks, states) float64
// state   : (channels, states) float64, that before the chunk; updated
extern "C" __global__ void highpass_chain(
    i64 channels, i64 blocks, const double *__restrict__ silence, const double *__restrict__ left,
    double *__restrict__ entered, double *__restrict__ state) {
  for (i64 c = this_thread(); c < channels; c += all_threads()) {
    double s[STATES];
    for (i32 k = 0; k < STATES; ++k) {
      s[k] = state[c * STATES + k];
    }
    for (i64 block = 0; block < blocks; block += AHEAD) {
      // What does not depend on the states is fetched ahead of them, for several blocks at once.
      double z[AHEAD][STATES];
      for (i32 j = 0; j < AHEAD; ++j) {
        for (i32 k = 0; k < STATES; ++k) {
          z[j][k] = left[(c * blocks + smaller(block + j, blocks - 1)) * STATES + k];
        }
      }
      for (i32 j = 0; j < AHEAD; ++j) {
        if (block + j < blocks) {
          pass_block(silence, z[j], entered + (c * blocks + block + j) * STATES, s);
        }
      }
    }
    for (i32 k = 0; k < STATES; ++k) {
      state[c * STATES + k] = s[k];
    }
  }
}

// Filter all blocks from the states before them.
//
// out : out[channel * out_pitch + i], the filtered samples; not the memory of `samples`
extern "C" __global__ void highpass_run(
    const float *__restrict__ samples, i64 pitch, i64 channels, i64 n,
    const float *__restrict__ first, const double *__restrict__ sos,
    const double *__restrict__ entered, float *__restrict__ out, i64 out_pitch) {
  __shared__ float shared[HIGHPASS_TILE * ROW];
  const i64 blocks = (n + HIGHPASS_BLOCK - 1) / HIGHPASS_BLOCK;
  for (i64 t = blockIdx.x; t < tiles_of(channels, n); t += gridDim.x) {
    const Tile tile = tile_at(t, n);
    float *y = out + tile.channel * out_pitch + tile.block * HIGHPASS_BLOCK;
    load_rows<HIGHPASS_BLOCK>(
        samples + tile.channel * pitch + tile.block * HIGHPASS_BLOCK, 0, tile.samples, shared);
    __syncthreads();
    for (i32 b = (i32)threadIdx.x; b * HIGHPASS_BLOCK < tile.samples; b += THREADS) {
      double s[STATES];
      for (i32 k = 0; k < STATES; ++k) {
        s[k] = entered[(tile.channel * blocks + tile.block + b) * STATES + k];
      }
      filter_row(shared + b * ROW, row_samples(tile, b), (double)first[tile.channel], sos, s);
    }
    __syncthreads();
    for (i32 k = (i32)threadIdx.x; k < tile.samples; k += THREADS) {
      y[k] = shared[place_of<HIGHPASS_BLOCK>(k)];
    }
    __syncthreads();
  }
}
