// Precision Timing Spike Detection (PTSD) in its parallel form.
//
// What enters: a chunk of one gap-free stretch of a recording, (channels, samples) float32
// microvolts, filtered, finite, with each channel's mean and peak-to-peak threshold (float32
// microvolts, computed once for the whole recording, on the host). What leaves: the spikes'
// samples (counted from the stretch's start), channels and peak-to-peak microvolts, equal to the
// sequential walk's bit for bit, however the stretch is cut into chunks.
//
// Source: Maccione et al. 2009, J. Neurosci. Methods 177:241-249. The sequential form's only state
// is the next sample to look at. Whether sample c is a peak with an opposite peak far enough away,
// and where the walk goes on after it, depends on the samples c-1 .. c+lifetime+overshoot and on n
// alone. So every candidate is evaluated by itself, and the spikes are the chain
//     a(1) = the first accepted candidate, a(k+1) = the first one at or after next(a(k)).
//
// The host launches, a chunk:
//     ptsd_evaluate    which samples are accepted candidates, a bit each
//     (an exclusive prefix sum of `count`, by the host's library)
//     ptsd_scatter     the accepted candidates, compact, by channel, then sample
//     ptsd_heads       candidates that are spikes whatever came before
//     ptsd_walk        the chain, one thread from each head to the next; or, where segments are
//                      long (a threshold far too low, an artefact),
//     ptsd_link and ptsd_double, ceil(log2(longest segment)) times: the same chain
//     ptsd_resume      the walk's state after the chunk, a channel
//
// Contract of a chunk. It decides the candidates [begin, end) of a stretch of n samples, and
// samples[channel * pitch + i - first] is sample i. It must hold every sample from begin-1 (from 0
// where begin is 0 or 1) to end-1+lifetime+overshoot, as far as the stretch has them. Chunks follow
// one another without a gap, and `resume` starts as 1 at a stretch's first chunk. lifetime >= 1.
//
// Exactness. Samples are only subtracted, compared and negated: there is no product that a compiler
// could fuse. Do not compile with --use_fast_math or --ftz=true: subnormals would be lost.
// Every scalar argument is 64 bits wide, which is how CuPy passes a Python int.

typedef unsigned char u8;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
static_assert(sizeof(i32) == 4 && sizeof(u32) == 4 && sizeof(i64) == 8, "fixed-width integers");

// Candidates a thread decides: as many as a word has bits, so that the answer is one word. The
// reach of a block's last candidate is read by its neighbour too, so small blocks read more.
#ifndef PTSD_BLOCK
#define PTSD_BLOCK 32
#endif
static_assert(PTSD_BLOCK >= 1 && PTSD_BLOCK <= 32, "a block's candidates are the bits of a u32");

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

__device__ i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
__device__ i64 larger(i64 a, i64 b) { return a > b ? a : b; }

// 64-bit: a long stretch of many channels has more samples than a 32-bit index can count.
__device__ i64 this_thread() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ i64 all_threads() { return (i64)gridDim.x * blockDim.x; }

// Tell whether two samples among x[0] .. x[last] may differ by the threshold; false is proof that
// they do not. Rounding is monotone, so the extremes' difference, rounded, is the largest one.
__device__ bool spans(const float *x, i64 last, float mean, float threshold) {
  float low = x[0];
  float high = x[0];
  for (i64 i = 1; i <= last; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  return (high - mean) - (low - mean) >= threshold;
}

// A plateau is a peak at its first sample: strictly above what came before, not below what comes.
__device__ bool is_peak(const float *x, float mean) {
  const float size = fabsf(x[0] - mean);
  return size > fabsf(x[-1] - mean) && size >= fabsf(x[1] - mean);
}

// Offset of the first largest (upwards) or first smallest sample among x[0] .. x[last]. The mean
// is taken off before comparing: two samples may differ and their rounded differences be equal.
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

// Start peak and opposite peak seen from a peak at x[0] with `left` samples of the stretch behind.
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

// Decide the candidates [begin, end), a thread a block of PTSD_BLOCK of them.
//
// resume   : (channels,) first sample the walk looks at; what lies before is no candidate
// accepted : (channels, blocks) bit b of a block's word is candidate begin + block*PTSD_BLOCK + b;
//            blocks = ceil((end - begin) / PTSD_BLOCK)
// count    : (channels, blocks) how many bits are set, to be summed up
extern "C" __global__ void ptsd_evaluate(
    const float *__restrict__ samples, i64 pitch, i64 channels, i64 first, i64 n, i64 begin,
    i64 end, const float *__restrict__ mean_uv, const float *__restrict__ threshold_uv,
    const i64 *__restrict__ resume, i64 lifetime, i64 overshoot, u32 *__restrict__ accepted,
    i32 *__restrict__ count) {
  const i64 blocks = (end - begin + PTSD_BLOCK - 1) / PTSD_BLOCK;
  for (i64 word = this_thread(); word < channels * blocks; word += all_threads()) {
    const i64 channel = word / blocks;
    const float mean = mean_uv[channel];
    const float threshold = threshold_uv[channel];
    const float *x = samples + channel * pitch;
    const i64 origin = begin + (word - channel * blocks) * PTSD_BLOCK;
    // The stretch's first and last sample lack a neighbour: they are never peaks.
    const i64 from = larger(origin, larger(resume[channel], 1));
    const i64 to = smaller(smaller(origin + PTSD_BLOCK, end), n - 1);
    u32 bits = 0;
    i32 set = 0;
    if (from < to && threshold <= LARGEST_FINITE) {
      // Most blocks are quiet, and one pass over them and their reach proves it.
      const i64 last = smaller(to - 1 + lifetime + overshoot, n - 1);
      if (spans(x + (from - first), last - from, mean, threshold)) {
        for (i64 c = from; c < to; ++c) {
          const float *at = x + (c - first);
          if (is_peak(at, mean) &&
              peaks_from(at, n - 1 - c, mean, lifetime, overshoot).amplitude_uv >= threshold) {
            bits |= 1u << (u32)(c - origin);
            ++set;
          }
        }
      }
    }
    accepted[word] = bits;
    count[word] = set;
  }
}

// Write the accepted candidates out, compact, ordered by channel, then sample. Their peaks are
// searched again: they are few, and storing every sample's would cost more than reading them twice.
//
// offset    : (channels, blocks) exclusive prefix sum of `count`
// candidate : (m,) the candidate's sample; m = the sum of `count`
// channel_of: (m,) its channel
// next      : (m,) the sample at which the walk goes on if the candidate is a spike
// sample    : (m,) the sample that dates that spike
// amplitude : (m,) its peak-to-peak microvolts
// negative  : 0 dates by the peak larger in absolute value, else by the more negative one
extern "C" __global__ void ptsd_scatter(
    const float *__restrict__ samples, i64 pitch, i64 channels, i64 first, i64 n, i64 begin,
    i64 end, const float *__restrict__ mean_uv, i64 lifetime, i64 refractory, i64 overshoot,
    i64 negative, const u32 *__restrict__ accepted, const i64 *__restrict__ offset,
    i64 *__restrict__ candidate, i32 *__restrict__ channel_of, i64 *__restrict__ next,
    i64 *__restrict__ sample, float *__restrict__ amplitude_uv) {
  const i64 blocks = (end - begin + PTSD_BLOCK - 1) / PTSD_BLOCK;
  for (i64 word = this_thread(); word < channels * blocks; word += all_threads()) {
    const i64 channel = word / blocks;
    const float mean = mean_uv[channel];
    const float *x = samples + channel * pitch;
    i64 c = begin + (word - channel * blocks) * PTSD_BLOCK;
    i64 k = offset[word];
    for (u32 bits = accepted[word]; bits != 0; bits >>= 1, ++c) {
      if ((bits & 1u) == 0) {
        continue;
      }
      const Peaks found = peaks_from(x + (c - first), n - 1 - c, mean, lifetime, overshoot);
      // A tie of absolute values goes to the later peak.
      const bool start_dates = negative != 0
                                   ? found.start_uv < found.opposite_uv
                                   : fabsf(found.start_uv) > fabsf(found.opposite_uv);
      const i64 dated = c + (start_dates ? found.start : found.opposite);
      const i64 opposite = c + found.opposite;
      const i64 rested = dated + refractory;
      candidate[k] = c;
      channel_of[k] = (i32)channel;
      next[k] = rested > opposite && rested < n ? rested : opposite + 1;
      sample[k] = dated;
      amplitude_uv[k] = found.amplitude_uv;
      ++k;
    }
  }
}

// Mark the heads: candidates at or after next of every earlier one of their channel.
//
// Once the walk has passed all earlier candidates, its state is `resume` or next of one of them,
// hence at most the head's sample: a head is a spike whatever came before, and what lies between
// two heads can be walked without knowing the rest.
//
// head : (m,) 1 or 0. The first candidate of a channel is a head.
extern "C" __global__ void ptsd_heads(
    i64 m, const i64 *__restrict__ candidate, const i32 *__restrict__ channel_of,
    const i64 *__restrict__ next, i64 lifetime, i64 refractory, i64 overshoot,
    u8 *__restrict__ head) {
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

// Select the spikes: a thread walks from each head to the one before the next head.
//
// selected : (m,) 1 where the candidate is a spike, else 0. Every candidate lies in one segment, so
//            every value is written, and by one thread.
extern "C" __global__ void ptsd_walk(
    i64 m, const i64 *__restrict__ candidate, const i64 *__restrict__ next,
    const u8 *__restrict__ head, u8 *__restrict__ selected) {
  for (i64 i = this_thread(); i < m; i += all_threads()) {
    if (head[i] == 0) {
      continue;
    }
    i64 state = next[i];
    selected[i] = 1;
    // Another channel's first candidate is a head too: no walk leaves its channel.
    for (i64 j = i + 1; j < m && head[j] == 0; ++j) {
      const bool reached = candidate[j] >= state;
      selected[j] = reached ? 1 : 0;
      state = reached ? next[j] : state;
    }
  }
}

// The first candidate of the same channel at or after next[i], or i where there is none.
__device__ i64 follower(
    i64 i, i64 m, const i64 *candidate, const i32 *channel_of, const i64 *next) {
  i64 j = i + 1;
  while (j < m && channel_of[j] == channel_of[i] && candidate[j] < next[i]) {
    ++j;
  }
  return j < m && channel_of[j] == channel_of[i] ? j : i;
}

// Begin the selection by pointer doubling: link each candidate to its follower, select the heads.
//
// jump     : (m,) index of the follower in the chain, itself where the chain ends
// selected : (m,) 1 for a head, else 0
extern "C" __global__ void ptsd_link(
    i64 m, const i64 *__restrict__ candidate, const i32 *__restrict__ channel_of,
    const i64 *__restrict__ next, const u8 *__restrict__ head, i64 *__restrict__ jump,
    u8 *__restrict__ selected) {
  for (i64 i = this_thread(); i < m; i += all_threads()) {
    jump[i] = follower(i, m, candidate, channel_of, next);
    selected[i] = head[i];
  }
}

// Double the jumps once. After r rounds each head's first 2^r followers are selected.
//
// jump, doubled : (m,) jumps before and after the round; two arrays, swapped by the host
// selected      : (m,) updated in place. A thread may or may not see what another one of the same
//                 round selects; either way only members of the chain are selected, and the round
//                 does not count on it.
extern "C" __global__ void ptsd_double(
    i64 m, const i64 *__restrict__ jump, i64 *__restrict__ doubled, u8 *selected) {
  for (i64 i = this_thread(); i < m; i += all_threads()) {
    const i64 j = jump[i];
    if (selected[i] != 0) {
      selected[j] = 1;
    }
    doubled[i] = jump[j];
  }
}

// Carry the walk's state past the chunk: next of each channel's last spike.
//
// resume : (channels,) left as it is where a channel has no spike
extern "C" __global__ void ptsd_resume(
    i64 m, const i64 *__restrict__ candidate, const i32 *__restrict__ channel_of,
    const i64 *__restrict__ next, const u8 *__restrict__ selected, i64 *__restrict__ resume) {
  for (i64 i = this_thread(); i < m; i += all_threads()) {
    if (selected[i] != 0 && follower(i, m, candidate, channel_of, next) == i) {
      resume[channel_of[i]] = next[i];
    }
  }
}
