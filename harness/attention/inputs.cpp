#include "harness/attention/inputs.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/fills.hpp"
#include "harness/attention/torch_dtype.hpp"

#ifndef _OPENMP
#error "at::parallel_for is a plain loop where its caller is compiled without -fopenmp"
#endif

namespace attnbench {
namespace {

constexpr int64_t kRowsPerTask = 64;

/// Where the tokens of one side (queries or keys) lie. packed: one row of pitch = tokens and tail.
struct Side {
  std::vector<int64_t> rows;     ///< storage row of every real token
  std::vector<RowIndex> tokens;  ///< position and length of every real token; head unset
  std::vector<int64_t> padded;   ///< the other storage rows (of padding or of the tail), ascending
  std::vector<int64_t> unseen;   ///< of keys: storage rows of the real tokens that no query sees
  int64_t sequences = 1, pitch = 0;
  bool is_padded = false;
};

Side lay_out(const Problem& problem, const std::vector<int64_t>& lengths, int64_t pitch, uint64_t seed) {
  Side side;
  side.is_padded = problem.layout == Layout::padded;
  for (size_t n = 0; n < lengths.size(); n++) {
    std::vector<int64_t> positions;
    if (side.is_padded) positions = token_positions(problem.pad, lengths[n], pitch, static_cast<int64_t>(n), seed);
    for (int64_t i = 0; i < lengths[n]; i++) {
      const auto token = static_cast<int64_t>(side.tokens.size());
      side.tokens.push_back({token, 0, i, lengths[n]});
      side.rows.push_back(side.is_padded ? static_cast<int64_t>(n) * pitch + positions[static_cast<size_t>(i)] : token);
    }
  }
  side.sequences = side.is_padded ? static_cast<int64_t>(lengths.size()) : 1;
  side.pitch = side.is_padded ? pitch : static_cast<int64_t>(side.rows.size()) + problem.tail;
  size_t next = 0;
  for (int64_t row = 0; row < side.sequences * side.pitch; row++) {
    if (next < side.rows.size() && side.rows[next] == row) {
      next++;
    } else {
      side.padded.push_back(row);
    }
  }
  return side;
}

/// Ranks [begin, end) of the keys that at least one query of the sequence sees: queries 0 and lq - 1 have the outermost ones.
struct SeenKeys {
  int64_t begin = 0, end = 0;
};
SeenKeys seen_keys(const Problem& problem, int64_t lq, int64_t lk) {
  if (lq == 0) return {};
  const int64_t offset = problem.align == Align::bottom_right ? lk - lq : 0;
  SeenKeys seen{0, lk};
  if (problem.mask == Mask::causal) seen.end = lq + offset;
  if (problem.window && problem.window->left >= 0) seen.begin = offset - std::min(problem.window->left, lq + lk);
  if (problem.window && problem.window->right >= 0)
    seen.end = std::min(seen.end, lq + offset + std::min(problem.window->right, lq + lk));
  seen.begin = std::clamp<int64_t>(seen.begin, 0, lk);
  seen.end = std::clamp<int64_t>(seen.end, seen.begin, lk);
  return seen;
}

/// Storage rows of the keys that nobody sees.
std::vector<int64_t> unseen_rows(const Problem& problem, const SequenceLengths& lengths, const Side& keys) {
  std::vector<int64_t> rows;
  size_t token = 0;
  for (size_t n = 0; n < lengths.k.size(); n++) {
    const SeenKeys seen = seen_keys(problem, lengths.q[n], lengths.k[n]);
    for (int64_t j = 0; j < lengths.k[n]; j++, token++)
      if (j < seen.begin || j >= seen.end) rows.push_back(keys.rows[token]);
  }
  return rows;
}

at::Tensor mask_of(const Side& side) {
  at::Tensor mask = at::zeros({side.sequences, side.pitch}, at::kBool);
  bool* real = mask.data_ptr<bool>();
  for (const int64_t row : side.rows) real[row] = true;
  return mask;
}

/// Elements from a head to the next where the last one is to start 2^31 behind the first, in multiples of 16.
int64_t far_apart(int64_t heads) {
  constexpr int64_t kFar = int64_t{1} << 31, kMultiple = 16;
  return (kFar / (heads - 1) / kMultiple + 1) * kMultiple;
}

/// A tensor [tokens, heads, channels] or [b, pitch, heads, channels] in the memory order that the case asks for.
at::Tensor allocate(const Side& side, int64_t heads, int64_t channels, Strides strides, bool broadcast_head, Dtype dtype) {
  const int64_t stored_heads = broadcast_head ? 1 : heads, rows = side.sequences * side.pitch;
  const int64_t offset = strides == Strides::unaligned ? 1 : 0;
  int64_t token_stride = stored_heads * channels, head_stride = channels, sequence_stride = side.pitch * token_stride;
  int64_t elements = rows * token_stride;
  if (strides == Strides::transposed) {
    token_stride = channels;
    head_stride = side.pitch * channels;
  }
  if (strides == Strides::far) {
    token_stride = channels;
    sequence_stride = side.pitch * channels;
    head_stride = std::max(rows * channels, far_apart(heads));
    elements = (heads - 1) * head_stride + rows * channels;
  }
  if (broadcast_head) head_stride = 0;
  const at::Tensor storage = at::empty({elements + offset}, torch_dtype(dtype));
  if (!side.is_padded) return storage.as_strided({side.pitch, heads, channels}, {token_stride, head_stride, 1}, offset);
  return storage.as_strided({side.sequences, side.pitch, heads, channels}, {sequence_stride, token_stride, head_stride, 1},
                            offset);
}

/// Writes rows of floats, rounded to T, into a tensor that `allocate` made.
template <typename T>
class RowWriter {
 public:
  RowWriter(const at::Tensor& tensor, const Side& side) : data_(tensor.data_ptr<T>()), pitch_(side.pitch) {
    const int64_t last = tensor.dim() - 1;
    heads_ = tensor.stride(last - 1) == 0 ? 1 : tensor.size(last - 1);
    head_stride_ = tensor.stride(last - 1);
    token_stride_ = tensor.stride(last - 2);
    sequence_stride_ = side.is_padded ? tensor.stride(0) : 0;
  }

  /// Heads that are stored (1 if all share one).
  int64_t heads() const { return heads_; }

  T* row(int64_t storage_row, int64_t head) const {
    return data_ + storage_row / pitch_ * sequence_stride_ + storage_row % pitch_ * token_stride_ + head * head_stride_;
  }

  void write(const std::vector<float>& values, int64_t storage_row, int64_t head) const {
    T* out = row(storage_row, head);
    for (size_t x = 0; x < values.size(); x++) out[x] = static_cast<T>(values[x]);
  }

 private:
  T* data_;
  int64_t pitch_, heads_ = 0, head_stride_ = 0, token_stride_ = 0, sequence_stride_ = 0;
};

template <typename T>
void write_tokens(const RowWriter<T>& writer, const Side& side, const RowDrawer& drawer) {
  at::parallel_for(0, static_cast<int64_t>(side.tokens.size()), kRowsPerTask, [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(drawer.channels()));
    for (int64_t token = begin; token < end; token++) {
      RowIndex index = side.tokens[static_cast<size_t>(token)];
      for (index.head = 0; index.head < writer.heads(); index.head++) {
        drawer.draw(index, values.data());
        writer.write(values, side.rows[static_cast<size_t>(token)], index.head);
      }
    }
  });
}

/// `garbage` numbered by storage row, or a constant where there is no drawer.
template <typename T>
void overwrite(const RowWriter<T>& writer, const std::vector<int64_t>& rows, int64_t channels, const RowDrawer* garbage,
               float constant) {
  at::parallel_for(0, static_cast<int64_t>(rows.size()), kRowsPerTask, [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(channels), constant);
    for (int64_t i = begin; i < end; i++) {
      const int64_t row = rows[static_cast<size_t>(i)];
      for (int64_t head = 0; head < writer.heads(); head++) {
        if (garbage) garbage->draw({row, head, 0, 0}, values.data());
        writer.write(values, row, head);
      }
    }
  });
}

struct TensorSpec {
  Stream values, garbage;
  int64_t heads, channels;
  bool broadcast_head;
};

template <typename T>
void write(const at::Tensor& tensor, const Side& side, const Case& c, const TensorSpec& spec, Conventions::Poison poison) {
  const RowWriter<T> writer(tensor, side);
  write_tokens(writer, side, RowDrawer(spec.values, c, spec.heads, spec.channels));
  const RowDrawer garbage(spec.garbage, c, spec.heads, spec.channels);
  const bool is_zero = spec.values == Stream::dout && side.is_padded;
  const bool is_finite = poison == Conventions::Poison::finite;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  overwrite(writer, side.padded, spec.channels, !is_zero && is_finite ? &garbage : nullptr, is_zero ? 0.0f : nan);
  if (!is_finite) overwrite(writer, side.unseen, spec.channels, nullptr, nan);
}

/// Of one tensor, where a case lays out one tensor unlike the others.
Strides strides_of(Stream tensor, Strides of_case) {
  if (of_case == Strides::v_transposed) return tensor == Stream::v ? Strides::transposed : Strides::contiguous;
  if (of_case == Strides::dout_transposed) return tensor == Stream::dout ? Strides::transposed : Strides::contiguous;
  return of_case;
}

at::Tensor make_tensor(const Side& side, const Case& c, const TensorSpec& spec, Conventions::Poison poison) {
  const Strides strides = strides_of(spec.values, c.strides);
  const at::Tensor tensor = allocate(side, spec.heads, spec.channels, strides, spec.broadcast_head, c.problem.dtype);
  if (tensor.numel() == 0) return tensor;
  switch (c.problem.dtype) {
    case Dtype::bf16:
      write<at::BFloat16>(tensor, side, c, spec, poison);
      break;
    case Dtype::fp16:
      write<at::Half>(tensor, side, c, spec, poison);
      break;
    case Dtype::fp32:
      write<float>(tensor, side, c, spec, poison);
      break;
  }
  return tensor;
}

at::Tensor draw_sinks(const Case& c) {
  const at::Tensor sinks = at::empty({c.problem.hq}, at::kFloat);
  const RowDrawer drawer(Stream::sink, c, c.problem.hq, 1);
  for (int64_t head = 0; head < c.problem.hq; head++) drawer.draw({0, head, 0, 0}, sinks.data_ptr<float>() + head);
  return sinks;
}

/// Copies the whole storage, so that strides and offset stay as the case asks for.
at::Tensor copy_to(const at::Tensor& tensor, at::Device device) {
  if (!tensor.defined()) return tensor;
  const auto stored = static_cast<int64_t>(tensor.storage().nbytes() / tensor.element_size());
  return tensor.as_strided({stored}, {1}, 0).to(device).as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
}

}  // namespace

int64_t Inputs::q_storage_rows() const {
  return q.dim() == 4 ? q.size(0) * q.size(1) : q.size(0);
}
int64_t Inputs::k_storage_rows() const {
  return k.dim() == 4 ? k.size(0) * k.size(1) : k.size(0);
}

at::Tensor prefix_sums(const std::vector<int64_t>& lengths, const char* what) {
  std::vector<int32_t> sums{0};
  int64_t total = 0;
  for (const int64_t length : lengths) {
    total += length;
    if (total > std::numeric_limits<int32_t>::max()) {
      throw std::invalid_argument(std::string("inputs: more than 2147483647 ") + what + " tokens in all; cu_seqlens is int32");
    }
    sums.push_back(static_cast<int32_t>(total));
  }
  return at::tensor(sums, at::kInt);
}

Inputs make_inputs(const Case& c, Conventions::Poison poison) {
  const Problem& p = c.problem;
  Inputs inputs;
  inputs.lengths = sequence_lengths(p, c.seed);
  inputs.scale = p.softmax_scale();
  inputs.cu_q = prefix_sums(inputs.lengths.q, "query");
  inputs.cu_k = prefix_sums(inputs.lengths.k, "key");
  const Side queries = lay_out(p, inputs.lengths.q, inputs.lengths.q_pitch, c.seed);
  Side keys = lay_out(p, inputs.lengths.k, inputs.lengths.k_pitch, c.seed);
  keys.unseen = unseen_rows(p, inputs.lengths, keys);
  const bool one_head = c.strides == Strides::stride0;
  inputs.q = make_tensor(queries, c, {Stream::q, Stream::q_garbage, p.hq, p.d, false}, poison);
  inputs.k = make_tensor(keys, c, {Stream::k, Stream::k_garbage, p.hkv, p.d, one_head}, poison);
  inputs.v = make_tensor(keys, c, {Stream::v, Stream::v_garbage, p.hkv, p.dv, one_head}, poison);
  inputs.dout = make_tensor(queries, c, {Stream::dout, Stream::dout, p.hq, p.dv, false}, poison);
  if (p.sink) inputs.sink = draw_sinks(c);
  if (p.layout == Layout::padded) {
    inputs.q_mask = mask_of(queries);
    inputs.k_mask = mask_of(keys);
  }
  inputs.q_rows = queries.rows;
  inputs.k_rows = keys.rows;
  return inputs;
}

bool holds_poison(const Case& c) {
  if (c.problem.layout == Layout::padded || c.problem.tail > 0) return true;
  const SequenceLengths lengths = sequence_lengths(c.problem, c.seed);
  for (size_t n = 0; n < lengths.k.size(); n++) {
    const SeenKeys seen = seen_keys(c.problem, lengths.q[n], lengths.k[n]);
    if (seen.end - seen.begin < lengths.k[n]) return true;
  }
  return false;
}

Inputs to_device(const Inputs& inputs, const Device& device) {
  const at::Device target(device.kind == "cpu" ? at::kCPU : at::kCUDA,
                          device.kind == "cpu" ? -1 : static_cast<at::DeviceIndex>(device.index));
  Inputs moved = inputs;
  for (at::Tensor* tensor :
       {&moved.q, &moved.k, &moved.v, &moved.dout, &moved.sink, &moved.cu_q, &moved.cu_k, &moved.q_mask, &moved.k_mask}) {
    *tensor = copy_to(*tensor, target);
  }
  return moved;
}

}  // namespace attnbench
