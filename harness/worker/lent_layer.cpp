#include "harness/worker/lent_layer.hpp"

#include <iterator>

#include <ATen/TensorOperators.h>

#include "harness/worker/bits.hpp"

namespace attnbench {
namespace {

using at::Tensor;

struct NamedInput {
  const char* name;
  Tensor LlamaInputs::*tensor;
};
constexpr NamedInput kInputs[] = {{"hidden", &LlamaInputs::hidden},
                                  {"wq", &LlamaInputs::wq},
                                  {"wk", &LlamaInputs::wk},
                                  {"wv", &LlamaInputs::wv},
                                  {"wo", &LlamaInputs::wo},
                                  {"wq_scale", &LlamaInputs::wq_scale},
                                  {"wk_scale", &LlamaInputs::wk_scale},
                                  {"wv_scale", &LlamaInputs::wv_scale},
                                  {"wo_scale", &LlamaInputs::wo_scale},
                                  {"norm", &LlamaInputs::norm},
                                  {"q_norm", &LlamaInputs::q_norm},
                                  {"k_norm", &LlamaInputs::k_norm},
                                  {"lora_qa", &LlamaInputs::lora_qa},
                                  {"lora_qb", &LlamaInputs::lora_qb},
                                  {"lora_va", &LlamaInputs::lora_va},
                                  {"lora_vb", &LlamaInputs::lora_vb},
                                  {"past_k", &LlamaInputs::past_k},
                                  {"past_v", &LlamaInputs::past_v},
                                  {"mask", &LlamaInputs::mask},
                                  {"position_ids", &LlamaInputs::position_ids},
                                  {"cu_seqlens", &LlamaInputs::cu_seqlens},
                                  {"dout", &LlamaInputs::dout}};
static_assert(sizeof(LlamaInputs) == std::size(kInputs) * sizeof(Tensor), "every input is copied, and looked at afterwards");

LlamaInputs copied(const LlamaInputs& inputs, bool negated, c10::Device device) {
  LlamaInputs copy;
  for (const NamedInput& input : kInputs)
    if (const Tensor& tensor = inputs.*input.tensor; tensor.defined()) copy.*input.tensor = tensor.clone().to(device);
  if (!negated) return copy;
  for (Tensor* values : {copy.wv_scale.defined() ? &copy.wv_scale : &copy.wv, &copy.lora_vb, &copy.past_v})
    if (values->defined()) values->neg_();
  return copy;
}

}  // namespace

LentInputs::LentInputs(const LlamaInputs& inputs, bool negated, c10::Device device)
    : lent(copied(inputs, negated, device)), kept_(copied(inputs, negated, device)) {}

std::string LentInputs::overwritten() const {
  std::string names;
  for (const NamedInput& input : kInputs)
    if (!same_bits(lent.*input.tensor, kept_.*input.tensor)) names += (names.empty() ? "" : ", ") + std::string(input.name);
  return names;
}

LlamaOutputs with_values_as_they_are(LlamaOutputs of_negated) {
  // The gradients of V's own weights are sums of P^T dO, which does not know V.
  for (Tensor LlamaOutputs::*output :
       {&LlamaOutputs::out, &LlamaOutputs::cache_v, &LlamaOutputs::dhidden, &LlamaOutputs::dwq, &LlamaOutputs::dwk,
        &LlamaOutputs::dwo, &LlamaOutputs::dnorm, &LlamaOutputs::dq_norm, &LlamaOutputs::dk_norm, &LlamaOutputs::dlora_qa,
        &LlamaOutputs::dlora_qb, &LlamaOutputs::dlora_va})
    if (Tensor& tensor = of_negated.*output; tensor.defined()) tensor = -tensor;
  return of_negated;
}

}  // namespace attnbench
