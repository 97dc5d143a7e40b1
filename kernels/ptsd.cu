// Precision Timing Spike Detection (PTSD) in its parallel form.
//
// Input: a chunk of a segment of a recording, (channels, samples) float32 microvolts, filtered and
// finite, with each channel's mean and peak-to-peak threshold (float32 microvolts, computed once for
// the whole recording, on the host). Output: the spikes' samples (counted from the segment's start),
// channels and peak-to-peak microvolts, equal to those of the sequential walk, bit for bit, however
// the segment is cut into chunks.
//
// Source: Maccione et al. 2009, J. Neurosci. Methods 177:241-249. The sequential form's only state
// is the next sample to look at. Whether sample c is a peak with an opposite peak far enough away,
// and where the walk goes on after it, depends only on the samples c-1 .. c+lifetime+overshoot and on
// n. So every candidate is evaluated by itself, and the spikes are the chain
//     a(1) = the first accepted candidate, a(k+1) = the first one at or after next(a(k)).
//
// The host launches, for each chunk, without waiting for anything:
//     ptsd_extremes    smallest and largest sample of each block of samples
//     ptsd_evaluate    the accepted candidates, one bit per sample
//     (an inclusive prefix sum of `count`, one number per tile, by the host's library)
//     ptsd_scatter     the accepted candidates as a list, by channel, then sample
//     ptsd_peaks       their peaks, one thread per candidate
//     ptsd_heads       heads: candidates that are spikes whatever came before
//     ptsd_walk        the chain, one thread from each head to the next, or to a limit
//     ptsd_walk_on     the same beyond the limit, one block of threads for each long run of
//                      candidates (a threshold far too low, an artefact)
//     ptsd_collect     the spikes, in any order, behind those of earlier chunks; and the walk's
//                      state after the chunk, for each channel
//
// How many candidates and spikes there are, the host learns after the last chunk only. The lists
// have room for `most`. Of a chunk with more candidates nothing is listed, and they are reported as
// lost, for the host to find the spikes again in shorter chunks.
//
// Requirements of a chunk. It decides the candidates [begin, end), at least one, of a segment of n
// samples, and samples[channel * pitch + i - first] is sample i. It must hold each sample from begin-1
// (from 0 if begin is 0 or 1) to end-1+lifetime+overshoot, as far as the segment reaches. Chunks
// follow one another without a gap, and `resume` is 1 at a segment's first chunk. lifetime >= 1.
// Blocks of samples start at multiples of PTSD_BLOCK of the segment, wherever chunks are cut; those
// at a chunk's ends are read twice, each time for the candidates of one chunk.
//
// Limit. With sparse spikes it is device memory, read once by ptsd_extremes. Its loads go through
// shared memory, since a thread that reads its own 32 samples would touch another cache line at every
// step. Beside the 128 bytes of a block's samples, 24 are moved: its extremes and its word, written
// and read. That is 0.6 of what a copy moves. With a threshold so low that every block may hold a
// spike, it is arithmetic: the windows of all peaks are searched three times.
//
// Exactness. Samples are only subtracted, compared and negated: there is no product that a compiler
// could fuse. Do not compile with --use_fast_math or --ftz=true, which lose subnormals.
// Every scalar argument is 64 bits wide, which is how CuPy passes a Python int.

#include "common.cuh"

// Samples whose extremes are taken together, and candidates whose answers are the bits of a word.
#ifndef PTSD_BLOCK
#define PTSD_BLOCK 32
#endif
static_assert(PTSD_BLOCK >= 1 && PTSD_BLOCK <= 32, "a block's candidates are the bits of a u32");

// Blocks of samples that a block of threads looks at together.
#ifndef PTSD_TILE
#define PTSD_TILE 128
#endif
static_assert(PTSD_TILE >= 1, "a tile holds a block");

// Candidates of a long run that a block of threads walks together.
#ifndef PTSD_RUN
#define PTSD_RUN 1024
#endif
static_assert(PTSD_RUN >= 1, "a walk takes a step");

// Thresholds above this are infinite: they silence a channel (a dead one).
#define LARGEST_FINITE 3.402823466e+38f

// A spike, as offsets from its candidate: the start peak, the opposite peak, their difference.
struct Peaks {
  i64 start;
  i64 opposite;
  float start_uv;
  float opposite_uv;
  float amplitude_uv;
};

// Block of the sample i, and how many blocks hold the samples [0, stop).
__device__ i64 block_of(i64 i) { return i / PTSD_BLOCK; }
__device__ i64 blocks_to(i64 stop) { return (stop + PTSD_BLOCK - 1) / PTSD_BLOCK; }

// A plateau is a peak at its first sample: strictly above what came before, not below what comes.
__device__ bool is_peak(const float *x, float mean) {
  const float size = fabsf(x[0] - mean);
  return size > fabsf(x[-1] - mean) && size >= fabsf(x[1] - mean);
}

// Offset of the first largest (upwards) or first smallest sample among x[0] .. x[last]. The mean
// is subtracted before comparing: two samples may differ and their rounded differences be equal.
__device__ i64 first_extreme(const float *x, i64 last, float mean, bool upwards) {
  i64 best = 0;
  float top = x[0] - mean;
  for (i64 i = 1; i <= last; ++i) {
    const float v = x[i] - mean;
    if (upwards ? v > top : v < top) {  // strict: of equal samples the first wins
      top = v;
      best = i;
    }
  }
  return best;
}

// Start peak and opposite peak seen from a peak at x[0] with `left` samples of the segment after it.
__device__ Peaks peaks_from(const float *x, i64 left, float mean, i64 lifetime, i64 overshoot) {
  const i64 window = smaller(lifetime, left);
  const bool upwards = x[0] - mean > 0.0f;
  Peaks found;
  found.opposite = first_extreme(x, window, mean, !upwards);
  found.start = first_extreme(x, found.opposite, mean, upwards);
  // On the window's edge the opposite peak may go on, once; the start peak is not looked for again.
  if (found.opposite == window && window + overshoot <= left) {
    found.opposite = first_extreme(x, window + overshoot, mean, !upwards);
  }
  found.start_uv = x[found.start] - mean;
  found.opposite_uv = x[found.opposite] - mean;
  found.amplitude_uv = fabsf(found.start_uv - found.opposite_uv);
  return found;
}

// Find the extremes of the blocks of samples that hold [begin, stop), one thread per block.
//
// stop : min(end + lifetime + overshoot, n), the end of what the chunk's candidates read
// low  : (channels, blocks) smallest sample of each block, as far as the chunk holds it
// high : (channels, blocks) largest; blocks = blocks_to(stop) - block_of(begin)
extern "C" __global__ void ptsd_extremes(
    const float *__restrict__ samples, i64 pitch, i64 channels, i64 first, i64 begin, i64 stop,
    float *__restrict__ low, float *__restrict__ high) {
  __shared__ float tile[PTSD_TILE * (PTSD_BLOCK + 1)];
  const i64 blocks = blocks_to(stop) - block_of(begin);
  const i64 tiles = (blocks + PTSD_TILE - 1) / PTSD_TILE;
  for (i64 t = blockIdx.x; t < channels * tiles; t += gridDim.x) {
    const i64 channel = t / tiles;
    const i64 block = (t - channel * tiles) * PTSD_TILE;
    const i64 origin = (block_of(begin) + block) * PTSD_BLOCK;
    // Tile positions of the chunk's samples: [from, to).
    const i32 from = (i32)larger(first - origin, 0);
    const i32 to = (i32)smaller(stop - origin, PTSD_TILE * PTSD_BLOCK);
    load_rows<PTSD_BLOCK>(samples + channel * pitch + (origin - first), from, to, tile);
    __syncthreads();
    for (i32 b = (i32)threadIdx.x; b < PTSD_TILE && block + b < blocks; b += THREADS) {
      const float *row = tile + b * (PTSD_BLOCK + 1);
      const i32 last = (i32)smaller(PTSD_BLOCK, to - b * PTSD_BLOCK);
      const i32 begins = (i32)larger(0, from - b * PTSD_BLOCK);
      float lowest = row[begins];
      float highest = row[begins];
      if (begins == 0 && last == PTSD_BLOCK) {  // nearly all: of a number known to the compiler
        for (i32 i = 1; i < PTSD_BLOCK; ++i) {
          lowest = fminf(lowest, row[i]);
          highest = fmaxf(highest, row[i]);
        }
      } else {
        for (i32 i = begins + 1; i < last; ++i) {
          lowest = fminf(lowest, row[i]);
          highest = fmaxf(highest, row[i]);
        }
      }
      low[channel * blocks + block + b] = lowest;
      high[channel * blocks + block + b] = highest;
    }
    __syncthreads();
  }
}

// Tell whether two samples of the blocks low[0] .. low[last] may differ by the threshold; false is
// proof that they do not. Rounding is monotone: the extremes' difference, rounded, is the largest.
__device__ bool spans(
    const float *low, const float *high, i64 last, float mean, float threshold) {
  float lowest = low[0];
  float highest = high[0];
  for (i64 b = 1; b <= last; ++b) {
    lowest = fminf(lowest, low[b]);
    highest = fmaxf(highest, high[b]);
  }
  return (highest - mean) - (lowest - mean) >= threshold;
}

// Decide the candidates [begin, end). First one thread per block checks whether it and its reach span
// the threshold; most do not. Then all threads share the candidates of those that do.
//
// low, high : from ptsd_extremes
// resume    : (channels,) first sample the walk looks at; what lies before is no candidate
// accepted  : (channels, words) bit b of a word is candidate PTSD_BLOCK * (block_of(begin) + word)
//             + b; words = blocks_to(end) - block_of(begin)
// count     : (channels, tiles) how many bits are set, to be summed up; tiles = words / PTSD_TILE,
//             rounded up
extern "C" __global__ void ptsd_evaluate(
    const float *__restrict__ samples, i64 pitch, i64 channels, i64 first, i64 n, i64 begin,
    i64 end, const float *__restrict__ mean_uv, const float *__restrict__ threshold_uv,
    const i64 *__restrict__ resume, i64 lifetime, i64 overshoot, const float *__restrict__ low,
    const float *__restrict__ high, u32 *__restrict__ accepted, i32 *__restrict__ count) {
  __shared__ u32 bits[PTSD_TILE];
  __shared__ i32 loud[PTSD_TILE];
  __shared__ i32 n_loud;
  __shared__ i32 set;
  const i64 reach = lifetime + overshoot;
  const i64 words = blocks_to(end) - block_of(begin);
  const i64 blocks = blocks_to(smaller(end + reach, n)) - block_of(begin);
  const i64 tiles = (words + PTSD_TILE - 1) / PTSD_TILE;
  for (i64 t = blockIdx.x; t < channels * tiles; t += gridDim.x) {
    const i64 channel = t / tiles;
    const i64 word = (t - channel * tiles) * PTSD_TILE;
    const i64 origin = (block_of(begin) + word) * PTSD_BLOCK;
    const float mean = mean_uv[channel];
    const float threshold = threshold_uv[channel];
    // The segment's first and last sample lack a neighbour: they are never peaks.
    const i64 from = larger(begin, larger(resume[channel], 1));
    const i64 to = smaller(end, n - 1);
    if (threadIdx.x == 0) {
      n_loud = 0;
      set = 0;
    }
    __syncthreads();
    for (i32 w = (i32)threadIdx.x; w < PTSD_TILE && word + w < words; w += THREADS) {
      const i64 start = origin + (i64)w * PTSD_BLOCK;
      const i64 stop = smaller(start + PTSD_BLOCK, to);
      bits[w] = 0;
      if (larger(start, from) < stop && threshold <= LARGEST_FINITE) {
        const i64 at = channel * blocks + word + w;
        const i64 last = block_of(smaller(stop - 1 + reach, n - 1)) - block_of(start);
        if (spans(low + at, high + at, last, mean, threshold)) {
          loud[atomicAdd(&n_loud, 1)] = w;
        }
      }
    }
    __syncthreads();
    const float *x = samples + channel * pitch;
    for (i32 k = (i32)threadIdx.x; k < n_loud * PTSD_BLOCK; k += THREADS) {
      const i32 w = loud[k / PTSD_BLOCK];
      const i32 bit = k % PTSD_BLOCK;
      const i64 c = origin + (i64)w * PTSD_BLOCK + bit;
      if (c < from || c >= to) {
        continue;
      }
      const float *at = x + (c - first);
      if (is_peak(at, mean) &&
          peaks_from(at, n - 1 - c, mean, lifetime, overshoot).amplitude_uv >= threshold) {
        atomicOr(&bits[w], 1u << bit);
        atomicAdd(&set, 1);
      }
    }
    __syncthreads();
    for (i32 w = (i32)threadIdx.x; w < PTSD_TILE && word + w < words; w += THREADS) {
      accepted[channel * words + word + w] = bits[w];
    }
    if (threadIdx.x == 0) {
      count[t] = set;
    }
  }
}

// How many candidates are listed: all of the chunk, or none where there is no room for all.
__device__ i64 listed(const i64 *ends, i64 tiles, i64 most) {
  const i64 m = ends[tiles - 1];
  return m <= most ? m : 0;
}

// List the accepted candidates, ordered by channel, then sample.
//
// ends      : (channels, tiles) inclusive prefix sum of `count`; every kernel after this one takes
//             it flat, with the number of all tiles, for its last value: the candidates in all
// most      : the candidates for which the lists have room
// candidate : (most,) the candidate's sample
// channel_of: (most,) its channel
// lost      : (1,) grows by the candidates of a chunk that has more than `most`
extern "C" __global__ void ptsd_scatter(
    i64 channels, i64 begin, i64 end, const u32 *__restrict__ accepted,
    const i64 *__restrict__ ends, i64 most, i64 *__restrict__ candidate,
    i32 *__restrict__ channel_of, i64 *__restrict__ lost) {
  __shared__ u32 bits[PTSD_TILE];
  const i64 words = blocks_to(end) - block_of(begin);
  const i64 tiles = (words + PTSD_TILE - 1) / PTSD_TILE;
  const i64 m = ends[channels * tiles - 1];
  if (m > most) {
    if (this_thread() == 0) {
      *lost += m;
    }
    return;
  }
  for (i64 t = blockIdx.x; t < channels * tiles; t += gridDim.x) {
    const i64 before = t == 0 ? 0 : ends[t - 1];
    if (ends[t] == before) {
      continue;  // all threads of the block alike
    }
    const i64 channel = t / tiles;
    const i64 word = (t - channel * tiles) * PTSD_TILE;
    const i32 here = (i32)smaller(PTSD_TILE, words - word);
    for (i32 w = (i32)threadIdx.x; w < here; w += THREADS) {
      bits[w] = accepted[channel * words + word + w];
    }
    __syncthreads();
    for (i32 w = (i32)threadIdx.x; w < here; w += THREADS) {
      i64 k = before;
      for (i32 earlier = 0; bits[w] != 0 && earlier < w; ++earlier) {
        k += __popc(bits[earlier]);
      }
      i64 c = (block_of(begin) + word + w) * PTSD_BLOCK;
      for (u32 left = bits[w]; left != 0; left >>= 1, ++c) {
        if ((left & 1u) != 0) {
          candidate[k] = c;
          channel_of[k] = (i32)channel;
          ++k;
        }
      }
    }
    __syncthreads();
  }
}

// Search the candidates' peaks again: they are few, and storing those of every sample would cost more
// than searching twice.
//
// next      : (most,) the sample at which the walk goes on if the candidate is a spike
// dated     : (most,) the sample that dates that spike
// amplitude : (most,) its peak-to-peak microvolts
// negative  : 0 dates by the peak larger in absolute value, else by the more negative one
extern "C" __global__ void ptsd_peaks(
    const i64 *__restrict__ ends, i64 tiles, i64 most, const float *__restrict__ samples, i64 pitch, i64 first, i64 n,
    const float *__restrict__ mean_uv, i64 lifetime, i64 refractory, i64 overshoot, i64 negative,
    const i64 *__restrict__ candidate, const i32 *__restrict__ channel_of, i64 *__restrict__ next,
    i64 *__restrict__ dated, float *__restrict__ amplitude_uv) {
  const i64 m = listed(ends, tiles, most);
  for (i64 k = this_thread(); k < m; k += all_threads()) {
    const i64 c = candidate[k];
    const i64 channel = channel_of[k];
    const float *x = samples + channel * pitch + (c - first);
    const Peaks found = peaks_from(x, n - 1 - c, mean_uv[channel], lifetime, overshoot);
    // A tie of absolute values goes to the later peak.
    const bool start_dates = negative != 0 ? found.start_uv < found.opposite_uv
                                           : fabsf(found.start_uv) > fabsf(found.opposite_uv);
    const i64 sample = c + (start_dates ? found.start : found.opposite);
    const i64 opposite = c + found.opposite;
    const i64 rested = sample + refractory;
    next[k] = rested > opposite && rested < n ? rested : opposite + 1;
    dated[k] = sample;
    amplitude_uv[k] = found.amplitude_uv;
  }
}

// Mark the heads: candidates at or after next of every earlier one of their channel.
//
// Once the walk has passed all earlier candidates, its state is `resume` or next of one of them,
// hence at most the head's sample: a head is a spike whatever came before, and what lies between
// two heads can be walked without knowing the rest.
//
// head : (most,) 1 or 0. The first candidate of a channel is a head.
extern "C" __global__ void ptsd_heads(
    const i64 *__restrict__ ends, i64 tiles, i64 most, const i64 *__restrict__ candidate,
    const i32 *__restrict__ channel_of, const i64 *__restrict__ next, i64 lifetime, i64 refractory,
    i64 overshoot, u8 *__restrict__ head) {
  const i64 m = listed(ends, tiles, most);
  // The farthest that next can lie from its candidate. It bounds how far back there can be anything
  // that matters, so the maximum over all earlier candidates needs no scan.
  const i64 farthest = lifetime + overshoot + larger(refractory, 1);
  for (i64 i = this_thread(); i < m; i += all_threads()) {
    const i64 c = candidate[i];
    bool free = true;
    for (i64 j = i - 1; free && j >= 0 && channel_of[j] == channel_of[i]; --j) {
      if (candidate[j] + farthest <= c) {
        break;
      }
      free = next[j] <= c;
    }
    head[i] = free ? 1 : 0;
  }
}

// Select the spikes: a thread walks from each head to the one before the next head, or through
// `limit` candidates.
//
// selected  : (most,) 1 where the candidate is a spike, else 0. Every candidate lies in one run, so
//             every value is written, and by one thread.
// n_runs    : (1,) grows by the runs with more than `limit` candidates after their head
// run_at    : (runs,) the first candidate that was not walked; room for most / (limit + 1) + 1 runs
// run_state : (runs,) the walk's state before it
extern "C" __global__ void ptsd_walk(
    const i64 *__restrict__ ends, i64 tiles, i64 most, const i64 *__restrict__ candidate,
    const i64 *__restrict__ next, const u8 *__restrict__ head, i64 limit, u8 *__restrict__ selected,
    u64 *__restrict__ n_runs, i64 *__restrict__ run_at, i64 *__restrict__ run_state) {
  const i64 m = listed(ends, tiles, most);
  for (i64 i = this_thread(); i < m; i += all_threads()) {
    if (head[i] == 0) {
      continue;
    }
    i64 state = next[i];
    selected[i] = 1;
    // Another channel's first candidate is a head too: no walk leaves its channel.
    i64 j = i + 1;
    for (; j < m && head[j] == 0 && j - i <= limit; ++j) {
      const bool reached = candidate[j] >= state;
      selected[j] = reached ? 1 : 0;
      state = reached ? next[j] : state;
    }
    if (j < m && head[j] == 0) {
      const u64 run = atomicAdd(n_runs, (u64)1);
      run_at[run] = j;
      run_state[run] = state;
    }
  }
}

// Walk the long runs to their ends, a block of threads each, PTSD_RUN candidates at a time.
//
// Among those, each candidate's follower in the chain is the first one at or after its `next`. The
// first of the chain is known from the state; with each round the followers are twice as far, and
// twice as many candidates are known to be in the chain.
extern "C" __global__ void ptsd_walk_on(
    const i64 *__restrict__ ends, i64 tiles, i64 most, const i64 *__restrict__ candidate,
    const i64 *__restrict__ next, const u8 *__restrict__ head, const u64 *__restrict__ n_runs,
    const i64 *__restrict__ run_at, const i64 *__restrict__ run_state, u8 *__restrict__ selected) {
  const i32 each = (PTSD_RUN + THREADS - 1) / THREADS;  // candidates of a thread
  __shared__ i64 at[PTSD_RUN];
  __shared__ i64 goes_on[PTSD_RUN];
  __shared__ i32 follower[PTSD_RUN];
  __shared__ u8 chosen[PTSD_RUN];
  __shared__ i32 here;
  __shared__ i64 left_with;
  const i64 m = listed(ends, tiles, most);
  for (u64 run = blockIdx.x; run < *n_runs; run += gridDim.x) {
    i64 from = run_at[run];
    i64 state = run_state[run];
    for (bool more = true; more;) {
      // The run ends before the next head.
      if (threadIdx.x == 0) {
        here = (i32)smaller(PTSD_RUN, m - from);
        left_with = state;
      }
      __syncthreads();
      for (i32 k = (i32)threadIdx.x; k < PTSD_RUN && from + k < m; k += THREADS) {
        at[k] = candidate[from + k];
        goes_on[k] = next[from + k];
        if (head[from + k] != 0) {
          atomicMin(&here, k);
        }
      }
      __syncthreads();
      const i32 n = here;
      for (i32 k = (i32)threadIdx.x; k < n; k += THREADS) {
        i32 j = k + 1;
        while (j < n && at[j] < goes_on[k]) {
          ++j;
        }
        follower[k] = j;
        chosen[k] = at[k] >= state && (k == 0 || at[k - 1] < state) ? 1 : 0;
      }
      __syncthreads();
      for (i32 reach = 1; reach < n; reach *= 2) {
        i32 farther[each];
        bool in_chain[each];
        for (i32 e = 0; e < each; ++e) {
          const i32 k = (i32)threadIdx.x + e * THREADS;
          in_chain[e] = k < n && chosen[k] != 0;
          farther[e] = k < n && follower[k] < n ? follower[follower[k]] : n;
        }
        __syncthreads();
        for (i32 e = 0; e < each; ++e) {
          const i32 k = (i32)threadIdx.x + e * THREADS;
          if (in_chain[e] && follower[k] < n) {
            chosen[follower[k]] = 1;
          }
        }
        __syncthreads();
        for (i32 e = 0; e < each; ++e) {
          const i32 k = (i32)threadIdx.x + e * THREADS;
          if (k < n) {
            follower[k] = farther[e];
          }
        }
        __syncthreads();
      }
      for (i32 k = (i32)threadIdx.x; k < n; k += THREADS) {
        selected[from + k] = chosen[k];
        // The last of the chain: what it does not reach is in no chain.
        bool last = chosen[k] != 0;
        for (i32 j = k + 1; last && j < n; ++j) {
          last = chosen[j] == 0;
        }
        if (last) {
          left_with = goes_on[k];
        }
      }
      __syncthreads();
      state = left_with;
      more = n == PTSD_RUN;
      from += n;
      __syncthreads();
    }
  }
}

// Put the spikes behind those found before, and carry the walk's state past the chunk: next of each
// channel's last spike.
//
// shift   : added to a spike's sample: where the segment begins in the recording
// resume  : (channels,) left as it is where a channel has no spike
// n_found : (1,) grows by the number of spikes, be there room for all of them or not
// sample, channel, uv : (most,) the spikes, in any order
extern "C" __global__ void ptsd_collect(
    const i64 *__restrict__ ends, i64 tiles, i64 most, const i64 *__restrict__ candidate,
    const i32 *__restrict__ channel_of, const i64 *__restrict__ next, const i64 *__restrict__ dated,
    const float *__restrict__ amplitude_uv, const u8 *__restrict__ selected, i64 shift,
    i64 *__restrict__ resume, u64 *__restrict__ n_found, i64 *__restrict__ sample,
    i32 *__restrict__ channel, float *__restrict__ uv) {
  __shared__ i32 here;
  __shared__ i64 before;
  const i64 m = listed(ends, tiles, most);
  for (i64 start = (i64)blockIdx.x * THREADS; start < m; start += all_threads()) {
    if (threadIdx.x == 0) {
      here = 0;
    }
    __syncthreads();
    const i64 i = start + threadIdx.x;
    const bool spike = i < m && selected[i] != 0;
    const i32 place = spike ? atomicAdd(&here, 1) : 0;
    __syncthreads();
    // One addition for all threads of the block: they would wait for each other at one address.
    if (threadIdx.x == 0 && here != 0) {
      before = (i64)atomicAdd(n_found, (u64)here);
    }
    __syncthreads();
    if (spike && before + place < most) {
      sample[before + place] = dated[i] + shift;
      channel[before + place] = channel_of[i];
      uv[before + place] = amplitude_uv[i];
    }
    if (spike) {
      i64 j = i + 1;
      while (j < m && channel_of[j] == channel_of[i] && candidate[j] < next[i]) {
        ++j;
      }
      if (j == m || channel_of[j] != channel_of[i]) {
        resume[channel_of[i]] = next[i];
      }
    }
    __syncthreads();
  }
}
