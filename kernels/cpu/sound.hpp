// What the CPU kernels ask where the self-test plants a defect, answered as a sound kernel does. All of it is constant or the
// identity, so that the kernels compile to what they were without asking. planted.hpp answers wrongly.
#pragma once

#include <cmath>

#include "kernels/cpu/band.hpp"
#include "kernels/cpu/exp.hpp"
#include "kernels/cpu/micro_kernel.hpp"
#include "kernels/cpu/shape.hpp"
#include "kernels/cpu/vector.hpp"

namespace attnbench::flash_varlen::cpu {

/// Where a kernel is in its work.
struct Place {
  int64_t sequence = 0, head = 0;
};

/// One step of the online softmax: the new maximum, and what O and l are multiplied by.
struct Rescale {
  Float maximum, o, l;
  ATTNBENCH_INLINE Rescale(Float maximum, Float factor) : maximum(maximum), o(factor), l(factor) {}
};

/// A finished row of O is multiplied by `factor` and written, or not written.
struct FinishedRow {
  bool written = true;
  float factor = 1;
};

struct Sound {
  // Shape, mask and scale.
  Sequence sequence(const Shape& shape, int64_t index) const { return sequence_of(shape, index); }
  Band band(const Shape&, const Band& band) const { return band; }
  Band backward_band(const Shape&, const Band& band) const { return band; }
  int64_t key_head(const Shape& shape, int64_t head) const { return head / (shape.hq / shape.hkv); }
  float score_scale(float scale) const { return scale; }
  int64_t depth(int64_t d) const { return d; }
  Range visited(const Shape&, const Place&, const Band&, Range visible) const { return visible; }
  Backward arguments(const Backward& args) const { return args; }

  // Forward.
  void keys_loaded(Tile, const Shape&, const Place&, const Sequence&, Range) const {}
  void values_loaded(Tile, const Shape&, const Place&, const Sequence&, Range) const {}
  void scores_computed(Tile, int64_t, int64_t) const {}
  ATTNBENCH_INLINE Float maximum(Float maximum, int64_t) const { return maximum; }
  ATTNBENCH_INLINE Float exp(Float x) const { return cpu::exp(x); }
  ATTNBENCH_INLINE Float stored_p(Float p) const { return p; }
  ATTNBENCH_INLINE Float summed_p(Float p) const { return p; }
  ATTNBENCH_INLINE Float sum(Float sum, Float, int64_t) const { return sum; }
  ATTNBENCH_INLINE Rescale rescale(Rescale rescale, Float) const { return rescale; }
  void accumulated(Tile, int64_t, int64_t) const {}
  float lse(float m, float l, const Place&, int64_t) const { return m + std::log(l); }
  FinishedRow finished(float*, float factor, const Shape&, const Place&, int64_t) const { return {true, factor}; }

  // Backward.
  float row_sum(float sum, const float*, const float*, int64_t) const { return sum; }
  int64_t lse_row_offset(int64_t) const { return 0; }
  int64_t d_row_offset(int64_t) const { return 0; }
  ATTNBENCH_INLINE Float backward_exp(Float x) const { return cpu::exp(x); }
  ATTNBENCH_INLINE Float ds(Float p, Float dp, Float d) const { return p * (dp - d); }
  ATTNBENCH_INLINE Float backward_stored_p(Float p) const { return p; }
  void before_dv(Tile, const Place&, const Band&, int64_t, int64_t, int64_t, int64_t) const {}
  void before_dk(Tile, const Place&, const Band&, int64_t, int64_t, int64_t, int64_t) const {}
  void before_dq(Tile, const Place&, const Band&, int64_t, int64_t, int64_t, int64_t) const {}
  void dq_added(Tile, Tile, Tile, const Shape&, const Place&, Range, int64_t, int64_t, Range) const {}
  int64_t first_head(int64_t first, int64_t) const { return first; }
  bool writes_unseen_keys() const { return true; }
  void unseen_keys(Tile, int64_t, int64_t) const {}
  float dq_scale(float scale) const { return scale; }
  float dk_factor(float) const { return 1; }
  float dv_factor() const { return 1; }
  void stored(Tile, int64_t, int64_t, float) const {}
};

}  // namespace attnbench::flash_varlen::cpu
