// Pictures of sliding windows, from spikes, straight into a network's input.
//
// Input: a recording's spikes (sample, channel) and its segments, and the first bin of each window.
// Output: pictures of S x S pixels, row 0 on top, as the input of a network: channel c of a pixel is
// darkness * scale[c] + shift[c], channels last, as float32, float16 or bfloat16. Darkness is 0 for
// white and 1 for black, as toptune/pictures/drawer.py defines it.
//
// The host launches, for each recording and bin length,
//     render_place      spikes of each bin, and the bins in which each electrode fired, as bits
// and, for each batch of windows,
//     render_histogram or render_raster
//
// Work per thread. A thread makes RENDER_ROWS pixels of one column: it reads the column's bins once
// for all of them, and neighbouring threads write neighbouring pixels. Threads share no sums, so
// windows may overlap and be anywhere. A column of a 120 s window at 224 pixels has 54 bins of 10 ms:
// for the raster, 2 or 3 words per electrode.
//
// Exactness. Darkness is a mean of whole numbers: raster marks are counted, and bars are measured in
// units of 2^-30 of a pixel. So sums are exact in any order, and only the last product rounds.
// Every scalar argument is 64 bits wide, which is how CuPy passes a Python int or float.

typedef int i32;
typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;
static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(i64) == 8, "fixed-width integers");

// Pixels of a column that a thread makes, one accumulator in registers each.
#ifndef RENDER_ROWS
#define RENDER_ROWS 16
#endif

// Types of the output, as the host numbers them.
#define RENDER_FLOAT32 0
#define RENDER_FLOAT16 1
#define RENDER_BFLOAT16 2

// Loops over a strip's rows are unrolled, so that its sums are in registers, not in memory; those
// inside them are not, to keep the code small.
#ifdef __CUDACC__
#define UNROLLED _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#else
#define UNROLLED
#define ROLLED
#endif

// A bar of the logarithmic count axis is log2(1 + spikes) of so many parts of the picture high.
#define LOG_PARTS 8.0

// A pixel's height in the units in which bars are measured.
#define PIXEL_SHIFT 30
#define PIXEL ((i64)1 << PIXEL_SHIFT)

__device__ i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
__device__ i64 larger(i64 a, i64 b) { return a > b ? a : b; }
__device__ i64 between(i64 low, i64 value, i64 high) { return smaller(larger(low, value), high); }

__device__ i64 this_thread() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ i64 all_threads() { return (i64)gridDim.x * blockDim.x; }

__device__ u32 bits_of(float value) {
  union {
    float value;
    u32 bits;
  } both;
  both.value = value;
  return both.bits;
}

// float16 nearest to a value, ties to even, by integers alone: what compiles here needs no header.
__device__ u16 to_float16(float value) {
  const u32 sign = (bits_of(value) >> 16) & 0x8000u;
  const u32 size = bits_of(value) & 0x7fffffffu;
  if (size >= 0x47800000u) {  // 65536 and above, infinity too
    return (u16)(sign | 0x7c00u);
  }
  if (size < 0x38800000u) {
    // Below 2^-14 the steps are 2^-24, which are those of float32 between 0.5 and 1.
    return (u16)(sign | (bits_of(fabsf(value) + 0.5f) - 0x3f000000u));
  }
  const u32 rounded = size + 0xfffu + ((size >> 13) & 1u);
  return (u16)(sign | ((rounded - 0x38000000u) >> 13));
}

// bfloat16 nearest to a value, ties to even: the upper half of a float32.
__device__ u16 to_bfloat16(float value) {
  const u32 bits = bits_of(value);
  return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Where a batch of pictures goes.
struct Canvas {
  void *out;
  i64 type;
  i64 channels;
  const float *scale;
  const float *shift;
};

__device__ void put(const Canvas &canvas, i64 pixel, double darkness) {
  ROLLED for (i64 c = 0; c < canvas.channels; ++c) {
    const float value =
        (float)(darkness * (double)canvas.scale[c] + (double)canvas.shift[c]);
    const i64 at = pixel * canvas.channels + c;
    if (canvas.type == RENDER_FLOAT32) {
      ((float *)canvas.out)[at] = value;
    } else {
      ((u16 *)canvas.out)[at] =
          canvas.type == RENDER_FLOAT16 ? to_float16(value) : to_bfloat16(value);
    }
  }
}

// The pixels of one thread: rows [row, row_end) of a column of a picture, and the column's bins.
struct Strip {
  i64 picture;
  i64 column;
  i64 row;
  i64 row_end;
  i64 bin;
  i64 bin_end;
};

// Strip number `item`; strips of one row of columns are neighbours. A bin belongs to the column that
// its start falls in; a column in which none starts shows the bin that covers it.
__device__ Strip strip_of(i64 item, i64 size, i64 width, const i64 *window_bin) {
  const i64 strips = (size + RENDER_ROWS - 1) / RENDER_ROWS;
  const i64 above = item / size;
  Strip strip;
  strip.column = item - above * size;
  strip.picture = above / strips;
  strip.row = (above - strip.picture * strips) * RENDER_ROWS;
  strip.row_end = smaller(strip.row + RENDER_ROWS, size);
  i64 bin = (strip.column * width + size - 1) / size;
  i64 bin_end = ((strip.column + 1) * width + size - 1) / size;
  if (bin == bin_end) {
    bin = strip.column * width / size;
    bin_end = bin + 1;
  }
  strip.bin = window_bin[strip.picture] + bin;
  strip.bin_end = window_bin[strip.picture] + bin_end;
  return strip;
}

// Put the spikes of a recording into bins, counted through all its segments.
//
// sample, channel : (n,) spikes; every sample lies in a segment, every channel is below `channels`
// first_sample    : (segments,) of each segment, ascending
// bins, offset    : (segments,) its whole bins, and the whole bins of all segments before it
// per_bin         : samples in a bin, which need not be a whole number
// count           : (all bins,) zeroed: how many spikes each has
// fired           : (channels, words) zeroed: bit b of word k of a channel is bin 32 * k + b
//
// Spikes after a segment's last whole bin are not counted.
extern "C" __global__ void render_place(
    i64 n, const i64 *__restrict__ sample, const i32 *__restrict__ channel, i64 segments,
    const i64 *__restrict__ first_sample, const i64 *__restrict__ bins,
    const i64 *__restrict__ offset, double per_bin, i64 words, i32 *count, u32 *fired) {
  for (i64 i = this_thread(); i < n; i += all_threads()) {
    i64 low = 0;
    for (i64 high = segments; high - low > 1;) {
      const i64 middle = low + (high - low) / 2;
      if (first_sample[middle] <= sample[i]) {
        low = middle;
      } else {
        high = middle;
      }
    }
    // Float64 and a division, so that a bin's edge is where the definition's division puts it.
    const i64 within = (i64)floor((double)(sample[i] - first_sample[low]) / per_bin);
    if (within < bins[low]) {
      const i64 bin = offset[low] + within;
      atomicAdd(count + bin, 1);
      atomicOr(fired + channel[i] * words + bin / 32, 1u << (u32)(bin % 32));
    }
  }
}

// Draw bar charts: a pixel is as dark as the part of it that its column's bars cover.
//
// n          : pictures
// window_bin : (n,) first bin of each window
// width      : bins in a window
// size       : side of the pictures, S
// count      : (all bins,) from render_place
// logarithmic: 0, or 1 for the logarithmic count axis
// top        : (n,) of the other count axis; a picture whose axis ends at 0 is white
// type       : of the output, RENDER_FLOAT32 or another
// channels   : of the output; scale and shift have as many values
// out        : (n, S, S, channels)
extern "C" __global__ void render_histogram(
    i64 n, const i64 *__restrict__ window_bin, i64 width, i64 size, const i32 *__restrict__ count,
    i64 logarithmic, const double *__restrict__ top, i64 type, i64 channels, const float *__restrict__ scale,
    const float *__restrict__ shift, void *out) {
  const Canvas canvas = {out, type, channels, scale, shift};
  const i64 strips = (size + RENDER_ROWS - 1) / RENDER_ROWS;
  for (i64 item = this_thread(); item < n * strips * size; item += all_threads()) {
    const Strip strip = strip_of(item, size, width, window_bin);
    const double per_spike = top[strip.picture] > 0.0 ? (double)size / top[strip.picture] : 0.0;
    // Height of the strip's lowest row above the chart's foot.
    const i64 foot = (size - strip.row_end) << PIXEL_SHIFT;
    const i64 rows = strip.row_end - strip.row;
    i64 covered[RENDER_ROWS];
    UNROLLED for (i64 r = 0; r < RENDER_ROWS; ++r) {
      covered[r] = 0;
    }
    for (i64 b = strip.bin; b < strip.bin_end; ++b) {
      const double pixels = logarithmic ? log2(1.0 + count[b]) * ((double)size / LOG_PARTS)
                                        : count[b] * per_spike;
      // Cut before it is scaled: an axis that ends far below the bars would overflow.
      const i64 bar = (i64)((pixels < (double)size ? pixels : (double)size) * PIXEL + 0.5);
      if (bar > foot) {
        UNROLLED for (i64 r = 0; r < RENDER_ROWS; ++r) {
          covered[r] += between(0, bar - foot - (r << PIXEL_SHIFT), PIXEL);
        }
      }
    }
    const double share = 1.0 / ((double)(strip.bin_end - strip.bin) * PIXEL);
    UNROLLED for (i64 r = 0; r < RENDER_ROWS; ++r) {
      if (r < rows) {  // not a shorter loop: it could not be unrolled
        const i64 row = strip.row_end - 1 - r;
        put(canvas, (strip.picture * size + row) * size + strip.column, covered[r] * share);
      }
    }
  }
}

// Bins in [bin, bin_end) in which an electrode fired, from its words.
__device__ i64 marks(const u32 *words, i64 bin, i64 bin_end) {
  i64 found = 0;
  for (i64 word = bin / 32; word * 32 < bin_end; ++word) {
    const u32 from = (u32)larger(bin - word * 32, 0);
    const u32 past = (u32)smaller(bin_end - word * 32, 32);
    const u32 mask = (~0u << from) & (~0u >> (32 - past));
    found += __popc(words[word] & mask);
  }
  return found;
}

// Draw raster plots: each of E electrodes has a band S/E rows high, the first on top, and a pixel is as
// dark as the sum over electrodes of (part of the row in the band) x (share of the bins with a mark).
//
// electrodes : E; none makes white pictures
// words      : of an electrode in `fired`
// fired      : (E, words) from render_place
// order      : (n, E) which electrode has which band of each picture; null: each its own
// Others as for render_histogram.
extern "C" __global__ void render_raster(
    i64 n, const i64 *__restrict__ window_bin, i64 width, i64 size, i64 electrodes, i64 words,
    const u32 *__restrict__ fired, const i32 *__restrict__ order, i64 type, i64 channels,
    const float *__restrict__ scale, const float *__restrict__ shift, void *out) {
  const Canvas canvas = {out, type, channels, scale, shift};
  const i64 strips = (size + RENDER_ROWS - 1) / RENDER_ROWS;
  for (i64 item = this_thread(); item < n * strips * size; item += all_threads()) {
    const Strip strip = strip_of(item, size, width, window_bin);
    const i64 rows = strip.row_end - strip.row;
    i64 covered[RENDER_ROWS];
    UNROLLED for (i64 r = 0; r < RENDER_ROWS; ++r) {
      covered[r] = 0;
    }
    const i64 last = (strip.row_end * electrodes + size - 1) / size;
    for (i64 e = strip.row * electrodes / size; e < last; ++e) {
      const i64 electrode = order ? order[strip.picture * electrodes + e] : e;
      const i64 found = marks(fired + electrode * words, strip.bin, strip.bin_end);
      if (found == 0) {
        continue;
      }
      // In units of 1 / (S * E) of the picture a row is E high and a band S: whole numbers.
      UNROLLED for (i64 r = 0; r < RENDER_ROWS; ++r) {
        const i64 row = (strip.row + r) * electrodes;
        const i64 shared = smaller(row + electrodes, (e + 1) * size) - larger(row, e * size);
        covered[r] += larger(shared, 0) * found;
      }
    }
    const double bins = (double)(strip.bin_end - strip.bin);
    const double share = 1.0 / ((double)larger(electrodes, 1) * bins);
    UNROLLED for (i64 r = 0; r < RENDER_ROWS; ++r) {
      if (r < rows) {
        const i64 pixel = (strip.picture * size + strip.row + r) * size + strip.column;
        put(canvas, pixel, covered[r] * share);
      }
    }
  }
}
