// eigen: attention as its definition reads, in float32 with Eigen, on the raw data of the tensors, packed or padded.
// A plain second implementation of our own: slow, exact, independent of LibTorch's operations.
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include "backends/attention/dense.hpp"
#include "backends/attention/eigen_attention.hpp"

#ifndef _OPENMP
#error "at::parallel_for is a plain loop where its caller is compiled without -fopenmp"
#endif

namespace attnbench {
namespace {

using eigen::Band;
using eigen::Matrix;

/// Element (storage row, head) of a tensor [rows, heads, channels] or [b, pitch, heads, channels], whatever its strides.
int64_t offset_of(const at::Tensor& x, int64_t storage_row, int64_t head) {
  if (x.dim() == 3) return storage_row * x.stride(0) + head * x.stride(1);
  return storage_row / x.size(1) * x.stride(0) + storage_row % x.size(1) * x.stride(1) + head * x.stride(2);
}

template <typename T>
Matrix read(const at::Tensor& x, const int64_t* storage_rows, int64_t count, int64_t head) {
  Matrix m(count, x.size(-1));
  const T* data = x.const_data_ptr<T>();
  for (int64_t r = 0; r < count; r++) {
    const T* from = data + offset_of(x, storage_rows[r], head);
    for (int64_t c = 0; c < m.columns; c++) m.row(r)[c] = static_cast<float>(from[c * x.stride(-1)]);
  }
  return m;
}

template <typename T>
void write(const Matrix& m, const at::Tensor& x, const int64_t* storage_rows, int64_t head) {
  T* data = x.mutable_data_ptr<T>();
  for (int64_t r = 0; r < m.rows; r++) {
    T* to = data + offset_of(x, storage_rows[r], head);
    for (int64_t c = 0; c < m.columns; c++) to[c] = static_cast<T>(m.row(r)[c]);
  }
}

Band band_of(const Problem& problem, int64_t lq, int64_t lk) {
  const int64_t far = std::numeric_limits<int32_t>::max();
  const int64_t offset = problem.align == Align::bottom_right ? lk - lq : 0;
  Band band{-far, far};
  if (problem.mask == Mask::causal) band.last = offset + 1;
  if (problem.window && problem.window->right >= 0) band.last = std::min(band.last, offset + problem.window->right + 1);
  if (problem.window && problem.window->left >= 0) band.first = offset - problem.window->left;
  return band;
}

/// Of a query head in sequence n. ALiBi's slopes are those of its paper: 2^(-8/n), 2^(-16/n), … for n heads.
eigen::Scores scores_of(const Problem& problem, const Inputs& in, int64_t n, int64_t head) {
  const int64_t lq = in.lengths.q[static_cast<size_t>(n)], lk = in.lengths.k[static_cast<size_t>(n)];
  eigen::Scores how;
  how.scale = static_cast<float>(in.scale);
  how.softcap = static_cast<float>(problem.softcap);
  if (problem.alibi) how.slope = std::exp2(-8.0f * static_cast<float>(head + 1) / static_cast<float>(problem.hq));
  how.offset = problem.align == Align::bottom_right ? lk - lq : 0;
  if (problem.sink) how.sink = in.sink.const_data_ptr<float>()[head];
  if (problem.dropout.p > 0) how.dropout = {problem.dropout.p, eigen::number_of_head(problem.dropout.seed, n, head)};
  return how;
}

/// One sequence: its tokens' storage rows and what they see.
struct Sequence {
  int64_t number;
  const int64_t *q_rows, *k_rows;
  int64_t lq, lk;
  Band band;
};

std::vector<Sequence> sequences_of(const Case& c, const Inputs& inputs) {
  std::vector<Sequence> sequences;
  const int64_t *q = inputs.q_rows.data(), *k = inputs.k_rows.data();
  for (size_t n = 0; n < inputs.lengths.q.size(); n++) {
    const int64_t lq = inputs.lengths.q[n], lk = inputs.lengths.k[n];
    sequences.push_back({static_cast<int64_t>(n), q, k, lq, lk, band_of(c.problem, lq, lk)});
    q += lq;
    k += lk;
  }
  return sequences;
}

/// Calls body(sequence, head) for all, in parallel. Each writes rows of its own, so results do not depend on the threads.
template <typename Body>
void for_each_head(const std::vector<Sequence>& sequences, int64_t heads, const Body& body) {
  at::parallel_for(0, static_cast<int64_t>(sequences.size()) * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) body(sequences[static_cast<size_t>(task / heads)], task % heads);
  });
}

/// Outputs::kept: what the forward of the same case keeps.
at::Tensor kept_by(const Case& c, const Inputs& in) {
  std::vector<int64_t> sizes = in.q.sizes().vec();
  const int64_t columns = sizes.back() = in.lengths.k_pitch > 0 ? in.lengths.k_pitch : in.lengths.max_k();
  const at::Tensor kept = at::zeros(sizes, in.q.options().dtype(at::kBool));
  bool* data = kept.mutable_data_ptr<bool>();
  for_each_head(sequences_of(c, in), c.problem.hq, [&](const Sequence& s, int64_t head) {
    const eigen::Dropout dropout = scores_of(c.problem, in, s.number, head).dropout;
    for (int64_t i = 0; i < s.lq; i++) {
      bool* row = data + (s.q_rows[i] * c.problem.hq + head) * columns;
      for (int64_t j = 0; j < s.lk; j++) row[in.lengths.k_pitch > 0 ? s.k_rows[j] - s.number * columns : j] = dropout.keeps(i, j);
    }
  });
  return kept;
}

template <typename T>
Outputs forward(const Case& c, const Inputs& in) {
  Outputs out;
  out.o = at::zeros(in.dout.sizes(), in.dout.options());
  out.lse = at::zeros(in.dout.sizes().slice(0, in.dout.dim() - 1), in.dout.options().dtype(at::kFloat));
  float* lse = out.lse.mutable_data_ptr<float>();
  const int64_t hq = c.problem.hq, group = c.problem.group();
  for_each_head(sequences_of(c, in), hq, [&](const Sequence& s, int64_t head) {
    const Matrix q = read<T>(in.q, s.q_rows, s.lq, head);
    const Matrix k = read<T>(in.k, s.k_rows, s.lk, head / group), v = read<T>(in.v, s.k_rows, s.lk, head / group);
    const eigen::Result result = eigen::forward(q, k, v, s.band, scores_of(c.problem, in, s.number, head));
    write<T>(result.o, out.o, s.q_rows, head);
    for (int64_t i = 0; i < s.lq; i++) lse[s.q_rows[i] * hq + head] = result.lse[static_cast<size_t>(i)];
  });
  if (c.problem.dropout.p > 0) out.kept = kept_by(c, in);
  return out;
}

template <typename T>
Outputs backward(const Case& c, const Inputs& in) {
  Outputs out;
  out.dq = at::zeros(in.q.sizes(), in.q.options());
  out.dk = at::zeros(in.k.sizes(), in.k.options());
  out.dv = at::zeros(in.v.sizes(), in.v.options());
  const int64_t group = c.problem.group();
  for_each_head(sequences_of(c, in), c.problem.hkv, [&](const Sequence& s, int64_t kv_head) {
    const Matrix k = read<T>(in.k, s.k_rows, s.lk, kv_head), v = read<T>(in.v, s.k_rows, s.lk, kv_head);
    Matrix dk(s.lk, k.columns), dv(s.lk, v.columns);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
      const Matrix q = read<T>(in.q, s.q_rows, s.lq, head), dout = read<T>(in.dout, s.q_rows, s.lq, head);
      Matrix dq(s.lq, q.columns);
      eigen::backward(q, k, v, dout, s.band, scores_of(c.problem, in, s.number, head), dq, dk, dv);
      write<T>(dq, out.dq, s.q_rows, head);
    }
    write<T>(dk, out.dk, s.k_rows, kv_head);
    write<T>(dv, out.dv, s.k_rows, kv_head);
  });
  return out;
}

template <typename T>
Window window(const Case& c, const Inputs& inputs) {
  return {"op", [c, &inputs] { return forward<T>(c, inputs); }, [c, &inputs] { return backward<T>(c, inputs); }};
}

/// Outputs, and for every thread float32 copies of one head's tensors and a block of scores (P, dP and dS).
/// The copies do not come from LibTorch's allocator: a peak that is measured there holds the outputs alone.
int64_t predicted_bytes(const Problem& problem, const Inputs& inputs, Pass pass) {
  const int64_t rows = inputs.lengths.max_q() + inputs.lengths.max_k(), channels = inputs.q.size(-1) + inputs.v.size(-1);
  const int64_t copies = (pass == Pass::backward ? 2 : 1) * rows * channels;
  const int64_t scores = (pass == Pass::backward ? 3 : 1) * eigen::kQueryBlock * inputs.lengths.max_k();
  const int64_t columns = std::max(inputs.lengths.k_pitch, inputs.lengths.max_k());
  const int64_t kept = problem.dropout.p > 0 ? inputs.q_storage_rows() * problem.hq * columns : 0;
  return output_bytes(inputs, pass, true) + kept + 4 * (copies + scores) * at::get_num_threads();
}

class EigenBackend : public Backend {
 public:
  EigenBackend() {
    declaration_.name = "eigen";
    declaration_.version = eigen::library_version();
    declaration_.implementation = "eigen";
    declaration_.ours = true;
    declaration_.profile = {
        .name = "fp32_inside", .p = Profile::Probabilities::not_rounded, .rounds_ds = false, .d = Profile::RowSum::from_p_dp};
    declaration_.capabilities = broad_capabilities({"cpu"});
    declaration_.capabilities.returns_lse = true;
    declaration_.capabilities.invariant_to = {Relation::alone, Relation::order, Relation::packing, Relation::concurrency};
    declaration_.capabilities.tail = true;
    Capabilities& can = declaration_.capabilities;
    can.softcap = can.alibi = can.sink = can.dropout = true;
  }

  const Declaration& declaration() const override { return declaration_; }

  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const override {
    Run run;
    run.profile = declaration_.profile;
    run.predicted_bytes = predicted_bytes(c.problem, inputs, pass);
    switch (c.problem.dtype) {
      case Dtype::bf16:
        run.windows = {window<at::BFloat16>(c, inputs)};
        break;
      case Dtype::fp16:
        run.windows = {window<at::Half>(c, inputs)};
        break;
      case Dtype::fp32:
        run.windows = {window<float>(c, inputs)};
        break;
    }
    return run;
  }

 private:
  Declaration declaration_;
};

}  // namespace

std::unique_ptr<Backend> make_eigen(const Device&) {
  return std::make_unique<EigenBackend>();
}

}  // namespace attnbench
