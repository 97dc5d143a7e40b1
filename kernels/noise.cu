// The noise of a recording's channels: standard deviations of windows, and medians.
//
// Input: a recording, samples[channel * pitch + i], n float32 of each channel, filtered and finite.
//
// Standard deviations. Sums are added as NumPy adds them, pairwise: up to 128 values by eight sums
// side by side, more as the sum of two halves of which the first has a multiple of eight values. So
// the estimates have the bits of the CPU's. The host launches
//     noise_leaves     the sums of up to 128 values, one thread each; first of the samples,
//     noise_join       then added up; from which follow the windows' means,
// and both again for the squares of the differences from these.
//
// Medians. Values are mapped to integers that order as they do, and the one of a given rank is found
// digit by digit, from the highest: the values that begin like it are counted by their next digit,
// and its own is the one where the counts reach the rank. For an even number of values the median
// lies between two, which are searched together. For each digit the host launches
//     rank_count       how many values there are of each digit
//     rank_narrow      the digit of the wanted values
// and, after the last digit of the samples themselves, before those of their deviations,
//     rank_centre      the medians
//
// Exactness. Compile with --fmad=false and --ftz=false, as the CPU computes.
//
// Limit: device memory, read once for each digit; and additions in shared memory where many values
// have the same digit.

#include "common.cuh"

// The most values that NumPy does not halve; one thread adds them up.
#ifndef NOISE_LEAF
#define NOISE_LEAF 128
#endif
static_assert(NOISE_LEAF >= 16, "halves of longer ranges have eight values");

// Bits of a digit.
#ifndef RANK_BITS
#define RANK_BITS 11
#endif
#define DIGITS (1 << RANK_BITS)

// Samples that a block of threads counts before it adds its counts to those of all.
#ifndef RANK_TILE
#define RANK_TILE 65536
#endif
static_assert(RANK_TILE >= 1 && RANK_TILE <= (1 << 30), "counts have 32 bits");

// --- standard deviations

// Some values of a window.
struct Range {
  i64 start;
  i64 size;
  bool whole;  // not halved as often as asked for, being short enough
};

// The part of `size` values that is reached by halving `depth` times: the bits of `path`, from the
// highest, tell which half. Of a part that needs no more halves only the first path is its own.
__device__ Range range_at(i64 size, i64 depth, i64 path) {
  Range range = {0, size, false};
  for (i64 d = depth - 1; d >= 0; --d) {
    if (range.size <= NOISE_LEAF) {
      range.whole = true;
      if ((path & ((2LL << d) - 1)) != 0) {
        range.size = 0;
      }
      return range;
    }
    const i64 half = range.size / 2 - range.size / 2 % 8;
    if ((path >> d & 1) != 0) {
      range.start += half;
      range.size -= half;
    } else {
      range.size = half;
    }
  }
  return range;
}

// Add up size values, at most NOISE_LEAF, as NumPy does.
template <class ValueAt>
__device__ double leaf_sum(i64 size, ValueAt value_at) {
  i64 i = 0;
  double sum = 0.0;
  if (size >= 8) {
    double r[8];
    for (i32 j = 0; j < 8; ++j) {
      r[j] = value_at(j);
    }
    for (i = 8; i + 8 <= size; i += 8) {
      for (i32 j = 0; j < 8; ++j) {
        r[j] += value_at(i + j);
      }
    }
    sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
  }
  for (; i < size; ++i) {
    sum += value_at(i);
  }
  return sum;
}

// Samples of a window: the last one may reach beyond the recording's end.
__device__ i64 window_size(i64 window, i64 step, i64 width, i64 n) {
  return larger(0, smaller(width, n - window * step));
}

// Sum the leaves of windows, which begin every `step` samples.
//
// depth   : how often windows are halved, so that no part is longer than a leaf
// squares : 0 sums the samples, else the squares of their differences from `mean`
// mean    : (channels, windows)
// sums    : (channels, windows, 2^depth)
extern "C" __global__ void noise_leaves(
    const float *__restrict__ samples, i64 pitch, i64 channels, i64 n, i64 windows, i64 step,
    i64 width, i64 depth, i64 squares, const double *__restrict__ mean,
    double *__restrict__ sums) {
  for (i64 t = this_thread(); t < (channels * windows) << depth; t += all_threads()) {
    const i64 k = t >> depth;
    const i64 window = k % windows;
    const i64 size = window_size(window, step, width, n);
    const Range range = range_at(size, depth, t - (k << depth));
    const float *x = samples + k / windows * pitch + window * step + range.start;
    const double centre = squares != 0 ? mean[k] : 0.0;
    sums[t] = leaf_sum(range.size, [&](i64 i) {
      const double v = (double)x[i] - centre;
      return squares != 0 ? v * v : v;
    });
  }
}

// Add up the leaves of each window, from the last halving to the first.
//
// mean  : 0 gives sums, else means: of no samples, 0
// total : (channels, windows)
extern "C" __global__ void noise_join(
    i64 channels, i64 n, i64 windows, i64 step, i64 width, i64 depth, i64 mean,
    double *__restrict__ sums, double *__restrict__ total) {
  for (i64 k = this_thread(); k < channels * windows; k += all_threads()) {
    const i64 size = window_size(k % windows, step, width, n);
    double *of = sums + (k << depth);
    for (i64 d = depth - 1; d >= 0; --d) {
      for (i64 path = 0; path < 1LL << d; ++path) {
        const Range range = range_at(size, d, path);
        if (!range.whole && range.size > NOISE_LEAF) {
          of[path << (depth - d)] += of[(2 * path + 1) << (depth - d - 1)];
        }
      }
    }
    total[k] = mean == 0 ? of[0] : of[0] / (double)larger(size, 1);
  }
}

// --- medians

// An integer that orders as a float does; -0 comes before 0, which changes no median.
__device__ u64 key_of(float x) {
  const u32 bits = __float_as_uint(x);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ float value_of(u64 key) {
  const u32 bits = (u32)key;
  return __uint_as_float((bits >> 31) != 0 ? bits ^ 0x80000000u : ~bits);
}

// The same of a deviation, which is not negative.
__device__ u64 key_of_deviation(float x, double centre) {
  return (u64)__double_as_longlong(fabs((double)x - centre));
}

// Count, by their next digit, the values that begin like either of two wanted ones.
//
// deviations : 0 counts samples, else their absolute differences from `centre`
// centre     : (channels,) float64
// shift, bits: the digit is bits shift .. shift + bits - 1 of a value's integer
// wanted     : (channels, 2) the bits above the digit, of the two wanted values
// counts     : (channels, 2, DIGITS), to which is added; where both begin alike, the first only
extern "C" __global__ void rank_count(
    const float *__restrict__ samples, i64 pitch, i64 channels, i64 n, i64 deviations,
    const double *__restrict__ centre, i64 shift, i64 bits, const u64 *__restrict__ wanted,
    u64 *__restrict__ counts) {
  __shared__ u32 here[2 * DIGITS];
  const i64 tiles = (n + RANK_TILE - 1) / RANK_TILE;
  const u32 mask = (1u << bits) - 1;
  for (i64 t = blockIdx.x; t < channels * tiles; t += gridDim.x) {
    const i64 channel = t / tiles;
    const i64 start = (t - channel * tiles) * RANK_TILE;
    const double middle = deviations != 0 ? centre[channel] : 0.0;
    const u64 first = wanted[2 * channel];
    const u64 second = wanted[2 * channel + 1];
    for (i32 d = (i32)threadIdx.x; d < 2 * DIGITS; d += THREADS) {
      here[d] = 0;
    }
    __syncthreads();
    const auto count = [&](i32, i32, float value) {
      const u64 key = deviations != 0 ? key_of_deviation(value, middle) : key_of(value);
      const u32 digit = (u32)(key >> shift) & mask;
      const u64 above = key >> shift >> bits;
      if (above == first) {
        atomicAdd(&here[digit], 1u);
      } else if (above == second) {
        atomicAdd(&here[DIGITS + digit], 1u);
      }
    };
    load_all(
        samples + channel * pitch + start, 0, (i32)smaller(RANK_TILE, n - start), count);
    __syncthreads();
    for (i32 d = (i32)threadIdx.x; d < 2 * DIGITS; d += THREADS) {
      if (here[d] != 0) {
        atomicAdd(&counts[2 * channel * DIGITS + d], (u64)here[d]);
      }
    }
    __syncthreads();
  }
}

// Append the digit where the counts reach the rank, for both wanted values of each channel.
//
// rank   : (channels, 2) how many smaller values there are among those that begin alike; updated
// wanted : (channels, 2) what the wanted values begin with; updated
extern "C" __global__ void rank_narrow(
    i64 channels, i64 bits, const u64 *__restrict__ counts, i64 *__restrict__ rank,
    u64 *__restrict__ wanted) {
  for (i64 c = this_thread(); c < channels; c += all_threads()) {
    const bool alike = wanted[2 * c] == wanted[2 * c + 1];
    for (i64 which = 2 * c; which < 2 * c + 2; ++which) {
      const u64 *of = counts + (alike ? 2 * c : which) * DIGITS;
      i64 left = rank[which];
      u64 digit = 0;
      // There are more values than the rank, so that it is reached by the last digit.
      for (; digit + 1 < (1ull << bits) && left >= (i64)of[digit]; ++digit) {
        left -= (i64)of[digit];
      }
      rank[which] = left;
      wanted[which] = wanted[which] << bits | digit;
    }
  }
}

// Take the mean of the two wanted samples, in float32, as NumPy's median does.
//
// wanted : (channels, 2) all bits of their integers
// centre : (channels,) float64
extern "C" __global__ void rank_centre(
    i64 channels, const u64 *__restrict__ wanted, double *__restrict__ centre) {
  for (i64 c = this_thread(); c < channels; c += all_threads()) {
    const float sum = value_of(wanted[2 * c]) + value_of(wanted[2 * c + 1]);
    centre[c] = (double)(sum / 2.0f);
  }
}
