#include "harness/attention/inputs.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/fills.hpp"
#include "harness/attention/tokens.hpp"
#include "harness/attention/torch_dtype.hpp"

namespace attnbench {
namespace {

/// Where the tokens of one side (queries or keys) lie. packed: one row of pitch = tokens and tail.
struct Side {
  std::vector<int64_t> rows;        ///< storage row of every real token
  std::vector<StorageRow> storage;  ///< every storage row
  at::Tensor on_device;             ///< the same, where they are drawn
  int64_t sequences = 1, pitch = 0;
  bool is_padded = false;
};

Side lay_out(const Problem& problem, const std::vector<int64_t>& lengths, int64_t pitch, uint64_t seed) {
  Side side;
  side.is_padded = problem.layout == Layout::padded;
  std::vector<StorageRow> tokens;
  for (size_t n = 0; n < lengths.size(); n++) {
    std::vector<int64_t> positions;
    if (side.is_padded) positions = token_positions(problem.pad, lengths[n], pitch, static_cast<int64_t>(n), seed);
    for (int64_t i = 0; i < lengths[n]; i++) {
      const auto token = static_cast<int64_t>(tokens.size());
      tokens.push_back({.of = RowOf::token, .number = token, .position = i, .length = lengths[n]});
      side.rows.push_back(side.is_padded ? static_cast<int64_t>(n) * pitch + positions[static_cast<size_t>(i)] : token);
    }
  }
  side.sequences = side.is_padded ? static_cast<int64_t>(lengths.size()) : 1;
  side.pitch = side.is_padded ? pitch : static_cast<int64_t>(side.rows.size()) + problem.tail;
  for (int64_t row = 0; row < side.sequences * side.pitch; row++) side.storage.push_back({.of = RowOf::nobody, .number = row});
  for (size_t token = 0; token < tokens.size(); token++) side.storage[static_cast<size_t>(side.rows[token])] = tokens[token];
  return side;
}

/// On the CPU a view.
at::Tensor copy_to(const std::vector<StorageRow>& rows, at::Device device) {
  static_assert(std::is_trivially_copyable_v<StorageRow>);
  const auto bytes = static_cast<int64_t>(rows.size() * sizeof(StorageRow));
  return uploaded(at::from_blob(const_cast<StorageRow*>(rows.data()), {bytes}, at::kByte), device);
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

void mark_unseen(const Problem& problem, const SequenceLengths& lengths, Side& keys) {
  size_t token = 0;
  for (size_t n = 0; n < lengths.k.size(); n++) {
    const SeenKeys seen = seen_keys(problem, lengths.q[n], lengths.k[n]);
    for (int64_t j = 0; j < lengths.k[n]; j++, token++)
      if (j < seen.begin || j >= seen.end) keys.storage[static_cast<size_t>(keys.rows[token])].of = RowOf::unseen;
  }
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
at::Tensor allocate(const Side& side, int64_t heads, int64_t channels, Strides strides, bool broadcast_head, Dtype dtype,
                    at::Device device) {
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
  const at::Tensor storage = at::empty({elements + offset}, at::TensorOptions(torch_dtype(dtype)).device(device));
  if (!side.is_padded) return storage.as_strided({side.pitch, heads, channels}, {token_stride, head_stride, 1}, offset);
  return storage.as_strided({side.sequences, side.pitch, heads, channels}, {sequence_stride, token_stride, head_stride, 1},
                            offset);
}

void draw(const Drawing& drawing, const at::Tensor& storage_rows, at::Device device) {
  const auto* rows = static_cast<const StorageRow*>(storage_rows.data_ptr());
  const auto count = static_cast<int64_t>(storage_rows.nbytes() / sizeof(StorageRow));
  draw_rows(!device.is_cpu(), drawing, rows, count);
}

struct TensorSpec {
  at::Tensor Inputs::*tensor;
  Stream values, garbage;
  int64_t heads, channels;
  bool over_keys, broadcast_head;
};

/// Of one tensor, where a case lays out one tensor unlike the others.
Strides strides_of(Stream tensor, Strides of_case) {
  if (of_case == Strides::v_transposed) return tensor == Stream::v ? Strides::transposed : Strides::contiguous;
  if (of_case == Strides::dout_transposed) return tensor == Stream::dout ? Strides::transposed : Strides::contiguous;
  return of_case;
}

/// seen: whether the tokens that somebody sees are drawn, too.
void draw_tensor(const at::Tensor& tensor, const Side& side, const Case& c, const TensorSpec& spec, Conventions::Poison poison,
                 bool seen) {
  if (tensor.numel() == 0) return;
  const bool is_finite = poison == Conventions::Poison::finite, is_zero = spec.values == Stream::dout && side.is_padded;
  const int64_t row_dim = tensor.dim() - 3;
  draw({.values = spec.values,
        .garbage = spec.garbage,
        .fill = c.fill,
        .dout = c.dout,
        .seed = c.seed,
        .seen = seen ? Holds::values : Holds::before,
        .unseen = is_finite ? Holds::values : Holds::nan,
        .nobody = is_zero     ? Holds::zeros
                  : is_finite ? Holds::garbage
                              : Holds::nan,
        .dtype = c.problem.dtype,
        .data = tensor.data_ptr(),
        .pitch = side.pitch,
        .sequence_stride = side.is_padded ? tensor.stride(0) : 0,
        .row_stride = tensor.stride(row_dim),
        .head_stride = tensor.stride(row_dim + 1),
        .heads = spec.heads,
        .channels = spec.channels,
        .stored_heads = spec.broadcast_head ? 1 : spec.heads},
       side.on_device, tensor.device());
}

/// Queries and keys of a case.
struct Sides {
  Sides(const Case& c, const SequenceLengths& lengths, at::Device device)
      : queries(lay_out(c.problem, lengths.q, lengths.q_pitch, c.seed)),
        keys(lay_out(c.problem, lengths.k, lengths.k_pitch, c.seed)) {
    mark_unseen(c.problem, lengths, keys);
    queries.on_device = copy_to(queries.storage, device);
    keys.on_device = copy_to(keys.storage, device);
  }
  const Side& of(const TensorSpec& spec) const { return spec.over_keys ? keys : queries; }

  Side queries, keys;
};

std::vector<TensorSpec> specs_of(const Case& c) {
  const Problem& p = c.problem;
  const bool one_head = c.strides == Strides::stride0;
  return {{&Inputs::q, Stream::q, Stream::q_garbage, p.hq, p.d, false, false},
          {&Inputs::k, Stream::k, Stream::k_garbage, p.hkv, p.d, true, one_head},
          {&Inputs::v, Stream::v, Stream::v_garbage, p.hkv, p.dv, true, one_head},
          {&Inputs::dout, Stream::dout, Stream::dout, p.hq, p.dv, false, false}};
}

at::Tensor draw_sinks(const Case& c, at::Device device) {
  const at::Tensor sinks = at::empty({c.problem.hq}, at::TensorOptions(at::kFloat).device(device));
  const std::vector<StorageRow> one = {StorageRow{}};
  draw({.values = Stream::sink,
        .garbage = Stream::sink,
        .fill = c.fill,
        .dout = c.dout,
        .seed = c.seed,
        .seen = Holds::values,
        .unseen = Holds::values,
        .nobody = Holds::values,
        .dtype = Dtype::fp32,
        .data = sinks.data_ptr(),
        .pitch = 1,
        .sequence_stride = 0,
        .row_stride = 0,
        .head_stride = 1,
        .heads = c.problem.hq,
        .channels = 1,
        .stored_heads = c.problem.hq},
       copy_to(one, device), device);
  return sinks;
}

at::Device torch_device(const Device& device) {
  if (device.kind == "cpu") return at::kCPU;
  return at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device.index));
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

Inputs make_inputs(const Case& c, Conventions::Poison poison, const Device& device) {
  const Problem& p = c.problem;
  const at::Device there = torch_device(device);
  Inputs inputs;
  inputs.lengths = sequence_lengths(p, c.seed);
  inputs.scale = p.softmax_scale();
  inputs.cu_q = uploaded(prefix_sums(inputs.lengths.q, "query"), there);
  inputs.cu_k = uploaded(prefix_sums(inputs.lengths.k, "key"), there);
  const Sides sides(c, inputs.lengths, there);
  for (const TensorSpec& spec : specs_of(c)) {
    const Strides strides = strides_of(spec.values, c.strides);
    inputs.*spec.tensor = allocate(sides.of(spec), spec.heads, spec.channels, strides, spec.broadcast_head, p.dtype, there);
    draw_tensor(inputs.*spec.tensor, sides.of(spec), c, spec, poison, /*seen=*/true);
  }
  if (p.sink) inputs.sink = draw_sinks(c, there);
  if (p.layout == Layout::padded) {
    inputs.q_mask = uploaded(mask_of(sides.queries), there);
    inputs.k_mask = uploaded(mask_of(sides.keys), there);
  }
  inputs.q_rows = sides.queries.rows;
  inputs.k_rows = sides.keys.rows;
  return inputs;
}

void repoison(const Case& c, Conventions::Poison poison, const Inputs& inputs) {
  const Sides sides(c, inputs.lengths, inputs.q.device());
  for (const TensorSpec& spec : specs_of(c)) draw_tensor(inputs.*spec.tensor, sides.of(spec), c, spec, poison, /*seen=*/false);
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

}  // namespace attnbench
