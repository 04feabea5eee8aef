#include "harness/worker/sealed_inputs.hpp"

#include <cstring>

#include "harness/worker/memory.hpp"

namespace attnbench {

namespace {

/// Of the whole storage: what lies between the elements of a strided tensor counts too.
uint64_t fingerprint(const at::Tensor& tensor) {
  const char* bytes = static_cast<const char*>(tensor.storage().data());
  const size_t size = tensor.storage().nbytes();
  uint64_t hash = 0x9e3779b97f4a7c15u ^ size;
  for (size_t at = 0; at < size; at += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + at, std::min(sizeof word, size - at));
    hash = (hash ^ word) * 0xff51afd7ed558ccdu;  // odd: a bijection of each word, so that one changed word always shows
    hash ^= hash >> 32;
  }
  return hash;
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
                       {"cu_q", inputs.cu_q},
                       {"cu_k", inputs.cu_k},
                       {"q_mask", inputs.q_mask},
                       {"k_mask", inputs.k_mask}});
}

NamedTensors named_tensors(const Outputs& outputs) {
  return defined_ones({{"o", outputs.o}, {"lse", outputs.lse}, {"dq", outputs.dq}, {"dk", outputs.dk}, {"dv", outputs.dv}});
}

SealedInputs::SealedInputs(const Case& c, Conventions::Poison poison, const Device& device)
    : case_(c), poison_(poison), device_(device), inputs_(draw()) {
  for (const auto& [name, tensor] : named_tensors(inputs_)) fingerprints_.push_back(fingerprint(tensor));
}

Inputs SealedInputs::draw() const {
  const MemoryScope checked(MemoryMode::checked);
  return to_device(make_inputs(case_, poison_), device_);
}

std::string SealedInputs::overwritten() const {
  std::string names;
  const NamedTensors tensors = named_tensors(inputs_);
  for (size_t i = 0; i < tensors.size(); ++i)
    if (fingerprint(tensors[i].second) != fingerprints_[i]) names += names.empty() ? tensors[i].first : ", " + tensors[i].first;
  return names;
}

void SealedInputs::restore() {
  const NamedTensors fresh = named_tensors(draw()), ours = named_tensors(inputs_);
  for (size_t i = 0; i < ours.size(); ++i) {
    const at::Storage& from = fresh[i].second.storage();
    std::memcpy(ours[i].second.storage().mutable_data(), from.data(), from.nbytes());
  }
}

}  // namespace attnbench
