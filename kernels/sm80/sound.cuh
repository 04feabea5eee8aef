// What the CUDA kernels ask where the self-test plants a defect, answered as a sound kernel does. All of it is constant or the
// identity, and Sound is empty, so that the kernels compile to the machine code that they would have without asking:
// scripts/kernel_code shows it. planted.cuh answers wrongly.
#pragma once

#include <type_traits>

#include "kernels/sm80/primitives.cuh"
#include "kernels/sm80/visibility.cuh"

namespace attnbench::flash_varlen::sm80 {

/// [begin, end)
struct Keys {
  int begin, end;
};

/// Where a kernel is in its work; the backward's has a block of queries and a block of keys as well.
struct Place {
  int sequence, head;
  int query0 = 0, key0 = 0;
};

/// One step of the online softmax: the new maximum, and what O and the row sum are multiplied by.
struct Rescale {
  float maximum, o, sum;
};

/// T: the dtype.  S: ForwardShape or BackwardShape.
struct Sound {
  // Shape, mask and scale.
  __device__ Sequence sequence(const Mask& mask, int index) const { return mask.sequence(index); }
  __device__ Sequence backward_sequence(const Mask& mask, int index) const { return mask.sequence(index); }
  __device__ int key_head(int head, int hq, int group) const { return head / group; }
  __device__ float score_scale(float scale) const { return scale; }
  __device__ float log2e() const { return 1.4426950408889634f; }
  __device__ float backward_log2e() const { return 1.4426950408889634f; }
  __device__ Keys visited(Keys visible, const Place&, int, int) const { return visible; }
  __device__ Keys loaded(Keys seen, int) const { return seen; }
  __device__ bool leaves_out_depth(int, int) const { return false; }

  // Forward.
  template <class S>
  __device__ void keys_arrived(Tile<S::D>, const Place&, int) const {}
  template <class S>
  __device__ void values_arrived(Tile<S::D>, const Place&, int, int) const {}
  template <class T, int tiles, int columns>
  __device__ void scores_computed(float (&)[tiles][columns][4]) const {}
  __device__ float hidden_score(int, int) const { return -INFINITY; }
  __device__ float exp2(float x) const { return exp2_approx(x); }
  template <class T>
  __device__ float summed_p(float p) const {
    return p;
  }
  template <class T, int tiles, int columns>
  __device__ void probabilities_computed(float (&)[tiles][columns][4]) const {}
  __device__ Rescale rescale(Rescale step, float, float) const { return step; }
  template <class T, int tiles, int columns>
  __device__ void output_accumulated(float (&)[tiles][columns][4]) const {}
  template <class T>
  __device__ float lse(float maximum, float scale, float sum) const {
    return maximum * scale + logf(sum);
  }
  __device__ bool writes_row(const Place&, int64_t, int, const Mask&) const { return true; }
  template <class T>
  __device__ float output(float o, const Place&, int64_t, int, const Mask&) const {
    return o;
  }

  // Backward.
  template <class T>
  __device__ float add_product(float sum, float a, float b) const {
    return sum + a * b;
  }
  template <class T>
  __device__ float add_sums(float a, float b) const {
    return a + b;
  }
  __device__ float row_sum(float sum) const { return sum; }
  __device__ int lse_row_offset(int) const { return 0; }
  __device__ int row_sum_offset(int) const { return 0; }
  template <class T>
  __device__ float ds(float p, float dp, float row_sum) const {
    return p * (dp - row_sum);
  }
  template <class T, int columns>
  __device__ void probabilities_for_dv(float (&)[columns][4], const Sequence&, const Place&, int) const {}
  template <class T, class S>
  __device__ void ds_for_dk(uint32_t (&)[S::kQueries / 16][4], const Sequence&, const Place&, int) const {}
  template <class T, int columns>
  __device__ void keys_accumulated(float (&)[columns][4]) const {}
  /// One element of a tile's part of dQ: row and column within the tile of queries.
  template <class T, class S>
  __device__ void add_to_dq(float* sum, float part, const Sequence&, const Place&, int, int) const {
    atomicAdd(sum, part);
  }
  template <class T>
  __device__ float dq(float sum, float scale) const {
    return sum * scale;
  }
  __device__ bool writes_unseen_keys() const { return true; }
  template <int columns>
  __device__ void unseen_keys(float (&)[columns][4], int, int) const {}
  __device__ float dk_factor(float scale) const { return scale; }
  __device__ float dv_factor() const { return 1; }
};
static_assert(std::is_empty_v<Sound>);

}  // namespace attnbench::flash_varlen::sm80
