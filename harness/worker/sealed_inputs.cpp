#include "harness/worker/sealed_inputs.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include "harness/worker/memory.hpp"
#include "harness/worker/row_words.hpp"
#include "harness/worker/spending.hpp"

namespace attnbench {

namespace {

/// The whole storage as elements of `dtype`, from byte `first`: what lies between the elements of a strided tensor too.
at::Tensor storage_as(const at::Tensor& tensor, at::ScalarType dtype, int64_t first, int64_t elements) {
  const auto size = static_cast<int64_t>(c10::elementSize(dtype));
  return at::empty({0}, tensor.options().dtype(dtype)).set_(tensor.storage(), first / size, {elements}, {1});
}

/// The bits of the elements, as integers: arithmetic would not keep those of a NaN. Autograd does not see writes to them.
at::Tensor bits_of(const at::Tensor& tensor) {
  const at::ScalarType integer = tensor.element_size() == 2 ? at::kShort : at::kInt;
  return at::empty({0}, tensor.options().dtype(integer))
      .set_(tensor.storage(), tensor.storage_offset(), tensor.sizes(), tensor.strides());
}

int64_t sign_bit_of(const at::Tensor& tensor) {
  return tensor.element_size() == 2 ? std::numeric_limits<int16_t>::min() : std::numeric_limits<int32_t>::min();
}

/// Negates the heads of [… rows …, heads, channels] whose signs differ.
void change_signs(const at::Tensor& tensor, const SealedInputs::HeadSigns& from, const SealedInputs::HeadSigns& to) {
  const int64_t heads = tensor.size(-2), of_signs = static_cast<int64_t>(std::max(from.size(), to.size()));
  if (of_signs == 0) return;
  const auto is_negative = [&](const SealedInputs::HeadSigns& signs, int64_t head) {
    return !signs.empty() && signs[size_t(head * of_signs / heads)];
  };
  std::vector<int64_t> masks;
  for (int64_t head = 0; head < heads; ++head)
    masks.push_back(is_negative(from, head) != is_negative(to, head) ? sign_bit_of(tensor) : 0);
  at::Tensor bits = bits_of(tensor);
  const bool shared = tensor.stride(-2) == 0;
  if (shared) bits = bits.narrow(-2, 0, 1), masks.resize(1);
  bits.bitwise_xor_(at::tensor(masks, at::kLong).to(bits.options()).unsqueeze(-1));
}

/// Of each whole storage, at least one, all on one device.
std::vector<uint64_t> fingerprints_of(const NamedTensors& tensors) {
  std::vector<Words> storages;
  for (const auto& [name, tensor] : tensors)
    storages.push_back({tensor.storage().data(), static_cast<int64_t>(tensor.storage().nbytes())});
  return fingerprints(tensors.front().second.device(), storages);
}

/// [… rows …, heads, channels] with the sign of each head times that of its key head.
at::Tensor with_signs(const at::Tensor& tensor, const SealedInputs::HeadSigns& signs) {
  if (!tensor.defined() || signs.empty()) return tensor;
  std::vector<double> factors;
  const int64_t heads = tensor.size(-2);
  for (int64_t head = 0; head < heads; ++head) factors.push_back(signs[size_t(head * int64_t(signs.size()) / heads)] ? -1 : 1);
  return tensor * at::tensor(factors, at::kDouble).to(tensor.options()).unsqueeze(-1);
}

NamedTensors defined_ones(NamedTensors tensors) {
  std::erase_if(tensors, [](const auto& named) { return !named.second.defined(); });
  return tensors;
}

}  // namespace

NamedTensors named_tensors(const Inputs& inputs) {
  return defined_ones({{"q", inputs.q},
                       {"k", inputs.k},
                       {"v", inputs.v},
                       {"dout", inputs.dout},
                       {"sink", inputs.sink},
                       {"cu_q", inputs.cu_q},
                       {"cu_k", inputs.cu_k},
                       {"q_mask", inputs.q_mask},
                       {"k_mask", inputs.k_mask}});
}

NamedTensors named_tensors(const Outputs& outputs) {
  return defined_ones({{"o", outputs.o},
                       {"lse", outputs.lse},
                       {"dq", outputs.dq},
                       {"dk", outputs.dk},
                       {"dv", outputs.dv},
                       {"kept", outputs.kept}});
}

SealedInputs::SealedInputs(const Case& c, Conventions::Poison poison, const Device& device)
    : case_(c),
      poison_(poison),
      device_(device),
      inputs_(draw()),
      held_(poison),
      fingerprints_{{poison, fingerprints_of(named_tensors(inputs_))}} {}

Inputs SealedInputs::lend() const {
  Inputs lent = inputs_;
  for (at::Tensor* tensor :
       {&lent.q, &lent.k, &lent.v, &lent.dout, &lent.sink, &lent.cu_q, &lent.cu_k, &lent.q_mask, &lent.k_mask})
    if (tensor->defined()) *tensor = tensor->detach();
  return lent;
}

SealedInputs::Signs::Signs(SealedInputs& inputs, HeadSigns v, HeadSigns dout)
    : inputs_(inputs), v_before_(inputs.v_signs_), dout_before_(inputs.dout_signs_) {
  inputs_.negate_heads(std::move(v), std::move(dout));
}

SealedInputs::Signs::~Signs() {
  try {
    inputs_.negate_heads(v_before_, dout_before_);
  } catch (const std::exception&) {  // of a GPU that failed, which somebody else tells
  }
}

SealedInputs::FinitePoison::FinitePoison(SealedInputs& inputs)
    : inputs_(inputs), applies_(inputs.held_ != Conventions::Poison::finite && holds_poison(inputs.case_)) {
  if (applies_) inputs_.hold(Conventions::Poison::finite);
}

SealedInputs::FinitePoison::~FinitePoison() {
  if (!applies_) return;
  try {
    inputs_.hold(inputs_.poison_);
  } catch (const std::exception&) {  // as above
  }
}

void SealedInputs::hold(Conventions::Poison poison) {
  const SpendingScope scope(Expense::poison);
  const MemoryScope unwatched(MemoryMode::off);
  held_ = poison;
  repoison(case_, poison, inputs_);
  if (!fingerprints_.contains(poison)) fingerprints_[poison] = fingerprints_of(named_tensors(inputs_));
}

Inputs SealedInputs::draw() const {
  const SpendingScope inputs(Expense::inputs);
  const MemoryScope checked(MemoryMode::checked);
  return make_inputs(case_, poison_, device_);
}

std::string SealedInputs::overwritten() const {
  const SpendingScope poison(Expense::poison);
  std::string names;
  const NamedTensors tensors = named_tensors(inputs_);
  const std::vector<uint64_t> now = fingerprints_of(tensors), &drawn = fingerprints_.at(held_);
  for (size_t i = 0; i < tensors.size(); ++i)
    if (now[i] != drawn[i]) names += names.empty() ? tensors[i].first : ", " + tensors[i].first;
  return names;
}

void SealedInputs::negate_heads(HeadSigns v, HeadSigns dout) {
  const MemoryScope unwatched(MemoryMode::off);  // of the signs on their way to a device
  change_signs(inputs_.v, v_signs_, v);
  change_signs(inputs_.dout, dout_signs_, dout);
  v_signs_ = std::move(v);
  dout_signs_ = std::move(dout);
}

void SealedInputs::write_late(at::Tensor Inputs::*tensor, const std::function<void()>& delay) {
  constexpr int64_t kNanByte = 0xff;
  const at::Tensor& whole = inputs_.*tensor;
  at::Tensor bytes = storage_as(whole, at::kByte, 0, static_cast<int64_t>(whole.storage().nbytes()));
  const at::Tensor kept = bytes.clone();
  bytes.fill_(kNanByte);
  delay();
  bytes.copy_(kept);
}

void SealedInputs::restore() {
  v_signs_.clear();
  dout_signs_.clear();
  held_ = poison_;
  const NamedTensors fresh = named_tensors(draw()), ours = named_tensors(inputs_);
  for (size_t i = 0; i < ours.size(); ++i) {
    const auto bytes = static_cast<int64_t>(ours[i].second.storage().nbytes());
    storage_as(ours[i].second, at::kByte, 0, bytes).copy_(storage_as(fresh[i].second, at::kByte, 0, bytes));
  }
}

Outputs without_signs(Outputs outputs, const SealedInputs::HeadSigns& v, const SealedInputs::HeadSigns& dout) {
  outputs.o = with_signs(outputs.o, v);
  outputs.dv = with_signs(outputs.dv, dout);
  for (at::Tensor* gradient : {&outputs.dq, &outputs.dk}) *gradient = with_signs(with_signs(*gradient, v), dout);
  return outputs;
}

}  // namespace attnbench
