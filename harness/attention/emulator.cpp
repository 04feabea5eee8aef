// The same-precision emulator: puts the sequences of a case into batches, which emulator_batch.hpp computes.
// It says what error is ordinary, not what values are right.
#include "harness/attention/emulator.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "harness/attention/emulator_batch.hpp"
#include "harness/attention/parallel.hpp"
#include "harness/attention/tokens.hpp"
#include "harness/attention/torch_dtype.hpp"

namespace attnbench {
namespace {

using namespace emulation;

constexpr int64_t kBatchRows = 1 << 18;  ///< (sequence, head, token) rows: in float32 with 128 channels 128 MiB of each tensor

/// Key heads [first, first + count), and with them their query heads.
struct KeyHeads {
  int64_t first = 0, count = 0;
};

/// [storage rows, heads, channels] of a tensor in the case's layout.
Tensor by_rows(const Tensor& tensor) {
  const int64_t heads = tensor.size(-2), channels = tensor.size(-1);
  return tensor.detach().reshape({tensor.numel() / (heads * channels), heads, channels});
}

CaseTensor case_tensor(const Tensor& rows) {
  return {.data = rows.mutable_data_ptr(),
          .row_stride = rows.stride(0),
          .head_stride = rows.stride(1),
          .channel_stride = rows.stride(2)};
}

/// One case: sequences of as many tiles are computed together; on a GPU all heads too, on a CPU one key head at a time.
class Emulation {
 public:
  Emulation(const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row);
  Outputs outputs();

 private:
  Setting make_setting(const Profile& profile);
  Sequence sequence(int64_t n, int64_t first_query, int64_t first_key) const;
  std::vector<Places> batches() const;
  std::vector<KeyHeads> pieces() const;
  void emulate(const Places& places, const KeyHeads& part) const;

  const Problem& problem_;
  const Inputs& inputs_;
  const Conventions::EmptyRow empty_row_;
  Tensor q_, k_, v_, dout_, o_, lse_, dq_, dk_, dv_;  ///< [storage rows, heads, channels]
  Tensor slopes_, sinks_, kept_;                      ///< where the tensors are; undefined: none
  CaseTensors tensors_;
  Setting setting_;
};

Emulation::Emulation(const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row)
    : problem_(c.problem),
      inputs_(inputs),
      empty_row_(empty_row),
      q_(by_rows(inputs.q)),
      k_(by_rows(inputs.k)),
      v_(by_rows(inputs.v)),
      dout_(by_rows(inputs.dout)) {
  const Problem& p = problem_;
  const auto storage = [&](int64_t rows, int64_t heads, int64_t channels) {
    return at::zeros({rows, heads, channels}, inputs.q.options());
  };
  o_ = storage(inputs.q_storage_rows(), p.hq, p.dv);
  dq_ = storage(inputs.q_storage_rows(), p.hq, p.d);
  dk_ = storage(inputs.k_storage_rows(), p.hkv, p.d);
  dv_ = storage(inputs.k_storage_rows(), p.hkv, p.dv);
  lse_ = at::full({inputs.q_storage_rows(), p.hq, 1}, -kInfinity, inputs.q.options().dtype(at::kFloat));
  tensors_ = {.q = case_tensor(q_),
              .k = case_tensor(k_),
              .v = case_tensor(v_),
              .dout = case_tensor(dout_),
              .o = case_tensor(o_),
              .dq = case_tensor(dq_),
              .dk = case_tensor(dk_),
              .dv = case_tensor(dv_)};
  setting_ = make_setting(profile);
}

/// Without places and heads.
Setting Emulation::make_setting(const Profile& profile) {
  const Problem& p = problem_;
  const c10::Device device = inputs_.q.device();
  Setting s;
  s.on_gpu = device.is_cuda();
  s.rounding = rounding_of(profile, p);
  s.scale = static_cast<float>(inputs_.scale), s.softcap = static_cast<float>(p.softcap);
  s.filler = empty_row_ == Conventions::EmptyRow::nan ? std::nanf("") : 0;
  s.d = p.d, s.dv = p.dv, s.group = p.group();
  s.all_heads = p.hq;
  s.lse = lse_.mutable_data_ptr<float>();
  if (p.alibi) {
    std::vector<double> slopes;
    for (int64_t head = 1; head <= p.hq; ++head)
      slopes.push_back(std::pow(2.0, -8.0 * static_cast<double>(head) / static_cast<double>(p.hq)));
    slopes_ = uploaded(at::tensor(slopes, at::kFloat), device);
    s.slopes = slopes_.const_data_ptr<float>();
  }
  if (p.sink) {
    sinks_ = inputs_.sink.detach().to(device).contiguous();
    s.sinks = sinks_.const_data_ptr<float>();
  }
  if (p.dropout.p != 0) {
    kept_ = inputs_.kept.to(device).contiguous();
    s.kept = kept_.const_data_ptr<bool>();
    s.kept_columns = kept_.size(-1);
    s.kept_factor = static_cast<float>(1 / (1 - p.dropout.p));
  }
  return s;
}

Sequence Emulation::sequence(int64_t n, int64_t first_query, int64_t first_key) const {
  Sequence s;
  s.real_keys = inputs_.lengths.k[n];
  s.first_column = problem_.layout == Layout::padded ? n * inputs_.lengths.k_pitch : first_key;
  const auto q_begin = inputs_.q_rows.begin() + first_query, k_begin = inputs_.k_rows.begin() + first_key;
  const auto k_end = k_begin + s.real_keys;
  s.q_rows.assign(q_begin, q_begin + inputs_.lengths.q[n]);
  s.k_rows.assign(k_begin, k_end);
  if (problem_.layout == Layout::padded && empty_row_ == Conventions::EmptyRow::uniform) {
    const int64_t pitch = inputs_.lengths.k_pitch;
    for (int64_t row = n * pitch; row < (n + 1) * pitch; ++row)
      if (!std::binary_search(k_begin, k_end, row)) s.k_rows.push_back(row);
  }
  s.find_reads(problem_, empty_row_);
  return s;
}

std::vector<Places> Emulation::batches() const {
  std::map<std::pair<int64_t, int64_t>, std::vector<Sequence>> open;  // by tiles of queries and of keys
  std::vector<Places> all;
  int64_t first_query = 0, first_key = 0;
  for (size_t n = 0; n < inputs_.lengths.q.size(); ++n) {
    Sequence s = sequence(static_cast<int64_t>(n), first_query, first_key);
    first_query += inputs_.lengths.q[n];
    first_key += inputs_.lengths.k[n];
    if (s.queries() == 0 || s.keys() == 0) continue;
    const std::pair tiles{tiles_of(s.queries()), tiles_of(s.keys())};
    std::vector<Sequence>& batch = open[tiles];
    batch.push_back(std::move(s));
    const int64_t rows = static_cast<int64_t>(batch.size() + 1) * problem_.hq * std::max(tiles.first, tiles.second) * kTile;
    if (rows > kBatchRows) all.emplace_back(std::exchange(batch, {}), inputs_.q.device());
  }
  for (auto& [tiles, batch] : open)
    if (!batch.empty()) all.emplace_back(batch, inputs_.q.device());
  return all;
}

std::vector<KeyHeads> Emulation::pieces() const {
  if (!inputs_.q.is_cpu()) return {{0, problem_.hkv}};
  std::vector<KeyHeads> pieces;
  for (int64_t head = 0; head < problem_.hkv; ++head) pieces.push_back({head, 1});
  return pieces;
}

void Emulation::emulate(const Places& places, const KeyHeads& part) const {
  Setting s = setting_;
  s.first_head = part.first * s.group, s.heads = part.count * s.group;
  // The dtype of a product's operands: the tensor cores', on a CPU fp32.
  const at::ScalarType operand = s.on_gpu ? torch_dtype(problem_.dtype) : at::kFloat;
  Batch(s, places, tensors_, inputs_.q.options().dtype(operand)).run();
}

Outputs Emulation::outputs() {
  const std::vector<Places> all = batches();
  const std::vector<KeyHeads> parts = pieces();
  const auto count = static_cast<int64_t>(parts.size());
  for_each_piece(inputs_.q.device(), static_cast<int64_t>(all.size()) * count, [&](int64_t i) {
    const at::NoGradGuard no_grad;  // which is each thread's own
    emulate(all[i / count], parts[i % count]);
  });
  const auto laid_out = [](const Tensor& rows, const Tensor& like) {
    std::vector<int64_t> sizes = like.sizes().vec();
    sizes[sizes.size() - 2] = rows.size(1);
    sizes.back() = rows.size(2);
    return rows.view(sizes);
  };
  return {laid_out(o_, inputs_.q),  laid_out(lse_, inputs_.q).squeeze(-1),
          laid_out(dq_, inputs_.q), laid_out(dk_, inputs_.k),
          laid_out(dv_, inputs_.k), inputs_.kept};
}

}  // namespace

Outputs emulate(const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row) {
  const at::NoGradGuard no_grad;
  const at::NoTF32Guard no_tf32;
  return Emulation(c, inputs, profile, empty_row).outputs();
}

}  // namespace attnbench
