// A layer that takes what it declares; what layers declare follows from what computes their attention.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "harness/worker/backend.hpp"
#include "harness/worker/llama_backend.hpp"

namespace attnbench {

/// Causal, over padded rows, the attention written out in LibTorch operations as `eager` does.
Declaration eager_layer(const std::string& name);

/// Of a layer that calls `attention`.
struct FusedDeclaration : Declaration {
  std::string attention;  ///< its name
};

/// Causal, over padded rows whose real tokens alone reach `attention`; padded rows of the output are 0.
FusedDeclaration fused_layer(const std::string& name, const Backend& attention);

/// Throws where the case has fewer key heads than query heads: the layer projects both to as many.
void require_equal_heads(const Declaration& layer, const Case& c);

class DeclaredLayer : public LlamaBackend {
 public:
  const Declaration& declaration() const override { return declaration_; }
  /// A case that switches, or says what runs, too, unless the layer can be switched; one of another 4-D mask, unless it has one.
  std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const override;
  virtual bool can_be_switched() const { return false; }
  /// Whether it takes the 4-D mask of a model, with as many keys as the case says.
  virtual bool has_mask_of_model() const { return false; }
  std::string attention() const override { return called_; }

 protected:
  explicit DeclaredLayer(Declaration declaration) : declaration_(std::move(declaration)) {}
  explicit DeclaredLayer(FusedDeclaration declaration)
      : declaration_(static_cast<const Declaration&>(declaration)), called_(std::move(declaration.attention)) {}
  Declaration declaration_;

 private:
  std::string called_;
};

/// One of the ways that cases go through a layer, for its choose(): the layer declares, takes and runs; what computes the
/// attention there says where that rounds, and what queries have that see no key.
class LayerPath : public LlamaBackend {
 public:
  /// `whole` outlives the path. attention: name of the backend that is called there; empty: none.
  LayerPath(const LlamaBackend& whole, const Declaration& computes, std::string attention);
  const Declaration& declaration() const override { return declaration_; }
  std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const override {
    return whole_.why_not(c, pass, device);
  }
  std::string attention() const override { return called_; }
  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override { return whole_.run(c, inputs, pass); }

 private:
  const LlamaBackend& whole_;
  Declaration declaration_;
  std::string called_;
};

}  // namespace attnbench
