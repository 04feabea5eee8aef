#include "backends/llama/switched_layer.hpp"

#include "harness/worker/backend.hpp"

namespace attnbench {

std::unique_ptr<LlamaBackend> make_hf_eager(const Device& device, const Backend& attention);
std::unique_ptr<LlamaBackend> make_flagembedding(const Device& device, const Backend& attention);

SwitchedLayer::SwitchedLayer(const std::string& name, const Device& device, const Backend& attention)
    : DeclaredLayer(fused_layer(name, attention)),
      original_(make_hf_eager(device, attention)),
      patched_(make_flagembedding(device, attention)),
      original_path_(*this, original_->declaration(), original_->attention()),
      patched_path_(*this, patched_->declaration(), patched_->attention()) {}

}  // namespace attnbench
