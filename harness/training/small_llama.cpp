// The small LLaMA that is trained: what harness/run/training_run.hpp says, in LibTorch operations.
//
// The optimiser is SGD with momentum: linear in the gradient, so that rounding moves the weights by as much as it moves the
// gradient. Adam divides by the gradient's own size: weights whose gradient is hardly more than its rounding go a whole step in a
// random direction, more of them the coarser the rounding is, and no band of another rounding holds.
#include <cmath>
#include <memory>
#include <utility>

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>

#include "harness/attention/torch_dtype.hpp"
#include "harness/llama/inputs.hpp"
#include "harness/run/draws.hpp"
#include "harness/training/padding.hpp"
#include "harness/training/trainer.hpp"

namespace attnbench {
namespace {

using at::Tensor;

constexpr int64_t kBytes = 256;
constexpr double kRate = 0.02, kMomentum = 0.9;

/// Gradients of a mean over thousands of bytes are too small for fp16 else; a power of two, so that no other dtype is touched.
constexpr double kLossScale = 4096;

/// Weights by the name under which their gradients are counted; all layers' together.
struct Weight {
  std::string group;
  Tensor value;  ///< float32
};

struct LayerWeights {
  Tensor norm1, wq, wk, wv, wo, norm2, gate, up, down;
  Tensor qa, qb, va, vb;  ///< adapters; undefined without
};

/// One batch: the bytes of all sequences in a row of their own, or one after the other.
struct Batch {
  Tensor bytes;                  ///< int64 [b, s], padded with 0, or [1, tokens]
  Tensor next;                   ///< int64 [tokens]: what stands behind each real byte
  Tensor position_ids;           ///< int64 [as bytes]
  std::vector<int64_t> lengths;  ///< of each sequence
  Tensor places;                 ///< int64 [tokens]: of the real bytes among b s; padded rows only
};

class SmallLlama : public Trainer {
 public:
  SmallLlama(const Case& c, const std::string& text, const Device& device, TrainedAttention attention)
      : c_(c), text_(text), device_(device_text(device)), attention_(std::move(attention)) {
    draw_weights();
    for (Weight& weight : weights_) {
      if (c.training->lora > 0 && weight.group != "lora") continue;
      trained_.push_back(weight.value.requires_grad_(true));
      groups_.push_back(weight.group);
      velocities_.push_back(at::zeros_like(weight.value));
    }
  }

  std::map<std::string, double> step() override {
    const Batch batch = draw_batch(Draws(c_.seed, kBatches + static_cast<uint64_t>(done_++)));
    const Tensor loss = at::cross_entropy_loss(logits(batch), batch.next);
    std::vector<Tensor> gradients = torch::autograd::grad({loss * kLossScale}, trained_);
    std::vector<Tensor> squares;
    for (Tensor& gradient : gradients) {
      gradient.div_(kLossScale);
      squares.push_back(gradient.square().sum(at::kDouble));
    }
    const Tensor numbers = at::stack(squares).to(at::kCPU);
    std::map<std::string, double> measured;
    for (size_t i = 0; i < groups_.size(); ++i) measured[groups_[i]] += numbers.const_data_ptr<double>()[i];
    for (auto& [group, norm] : measured) norm = std::sqrt(norm);
    measured["loss"] = loss.item<double>();
    const at::NoGradGuard still;
    for (size_t i = 0; i < trained_.size(); ++i) {
      velocities_[i].mul_(kMomentum).add_(gradients[i]);
      trained_[i].sub_(velocities_[i], kRate);
    }
    return measured;
  }

 private:
  static constexpr uint64_t kWeights = 1, kBatches = 1000;

  Tensor weight(const std::string& group, std::vector<int64_t> sizes, double deviation) {
    const Tensor numbers = at::empty(sizes, at::kFloat);
    Draws draws(c_.seed, kWeights + weights_.size());
    float* data = numbers.mutable_data_ptr<float>();
    // Of a uniform distribution: the sum of the mantissas' bits is exact everywhere.
    for (int64_t i = 0; i < numbers.numel(); ++i) {
      const double uniform = static_cast<double>(draws.bits() >> 40) / static_cast<double>(1 << 24);
      data[i] = static_cast<float>(deviation * std::sqrt(12.0) * (uniform - 0.5));
    }
    return weights_.emplace_back(Weight{group, numbers.to(device_)}).value;
  }
  Tensor norm_weight(int64_t channels) {
    return weights_.emplace_back(Weight{"norm", at::ones({channels}, at::kFloat).to(device_)}).value;
  }

  void draw_weights() {
    const Problem& p = c_.problem;
    const TrainingRun& run = *c_.training;
    const int64_t e = p.hq * p.d, keys = p.hkv * p.d, inner = 2 * e, rank = run.lora;
    const double width = 1 / std::sqrt(static_cast<double>(e)), out = width / std::sqrt(2.0 * static_cast<double>(run.layers));
    embed_ = weight("embed", {kBytes, e}, run.tied ? width : 1);
    for (int64_t i = 0; i < run.layers; ++i) {
      LayerWeights layer;
      layer.norm1 = norm_weight(e);
      layer.wq = weight("wq", {e, e}, width);
      layer.wk = weight("wk", {keys, e}, width);
      layer.wv = weight("wv", {keys, e}, width);
      layer.wo = weight("wo", {e, e}, out);
      layer.norm2 = norm_weight(e);
      layer.gate = weight("mlp", {inner, e}, width);
      layer.up = weight("mlp", {inner, e}, width);
      layer.down = weight("mlp", {e, inner}, out / std::sqrt(2.0));
      if (rank > 0) {
        layer.qa = weight("lora", {rank, e}, width);
        layer.qb = weight("lora", {e, rank}, width);
        layer.va = weight("lora", {rank, e}, width);
        layer.vb = weight("lora", {keys, rank}, width);
      }
      layers_.push_back(layer);
    }
    last_norm_ = norm_weight(e);
    head_ = run.tied ? embed_ : weight("head", {kBytes, e}, width);
  }

  Batch draw_batch(Draws draws) const {
    const Problem& p = c_.problem;
    Batch batch;
    std::vector<int64_t> bytes, next, ids;
    const bool padded = p.layout == Layout::padded;
    for (int64_t n = 0; n < p.b; ++n) {
      const int64_t length = p.lq / 4 + draws.below(p.lq - p.lq / 4 + 1);
      const int64_t start = draws.below(static_cast<int64_t>(text_.size()) - length);
      for (int64_t i = 0; i < length; ++i) {
        bytes.push_back(static_cast<unsigned char>(text_[static_cast<size_t>(start + i)]));
        next.push_back(static_cast<unsigned char>(text_[static_cast<size_t>(start + i + 1)]));
        ids.push_back(i);
      }
      for (int64_t i = length; padded && i < p.lq; ++i) {
        bytes.push_back(0);
        ids.push_back(0);
      }
      batch.lengths.push_back(length);
    }
    const int64_t rows = padded ? p.b : 1;
    batch.bytes = at::tensor(bytes, at::kLong).view({rows, -1}).to(device_);
    batch.position_ids = at::tensor(ids, at::kLong).view({rows, -1}).to(device_);
    batch.next = at::tensor(next, at::kLong).to(device_);
    if (padded) batch.places = places_of_tokens(batch.lengths, p.lq, device_);
    return batch;
  }

  /// [b, s, …] or [1, tokens, …] -> [tokens, …]
  static Tensor tokens_of(const Tensor& x, const Batch& batch) {
    return batch.places.defined() ? rows_of_tokens(x, batch.places) : x.flatten(0, 1);
  }

  /// x [1 or b, s, heads, d] turned by its position ids: x cos + (-x2, x1) sin of ids times 10000^(-2i/d), the halves alike.
  static Tensor turned(const Tensor& x, const Tensor& position_ids) {
    const int64_t d = x.size(-1);
    const Tensor half = at::arange(0, d, 2, x.options().requires_grad(false)) * (-std::log(10000.0) / static_cast<double>(d));
    const Tensor angles = (position_ids.to(at::kFloat).unsqueeze(-1) * half.exp()).unsqueeze(2);  // [1 or b, s, 1, d / 2]
    const Tensor cos = angles.cos(), sin = angles.sin(), first = x.narrow(-1, 0, d / 2), second = x.narrow(-1, d / 2, d / 2);
    return at::cat({first * cos - second * sin, second * cos + first * sin}, -1);
  }

  static Tensor normalised(const Tensor& x, const Tensor& weight) {
    return x * (x.square().mean(-1, true) + kNormEpsilon).rsqrt() * weight;
  }

  /// x [b, s, E] through a projection and, where it has them, its adapters.
  static Tensor adapted(const Tensor& x, const Tensor& w, const Tensor& a, const Tensor& b) {
    const Tensor y = at::linear(x, w);
    return a.defined() ? y + kLoraScale * at::linear(at::linear(x, a), b) : y;
  }

  Tensor attention(const Tensor& x, const LayerWeights& w, const Batch& batch) const {
    const int64_t d = c_.problem.d;
    const at::ScalarType type = torch_dtype(c_.problem.dtype);
    const auto heads = [&](const Tensor& y) { return y.unflatten(-1, {-1, d}); };
    const auto packed = [&](const Tensor& y) { return tokens_of(y, batch).to(type); };
    const Tensor q = turned(heads(adapted(x, w.wq, w.qa, w.qb)), batch.position_ids);
    const Tensor k = turned(heads(at::linear(x, w.wk)), batch.position_ids);
    const Tensor v = heads(adapted(x, w.wv, w.va, w.vb));
    const Tensor o = attention_(packed(q), packed(k), packed(v), batch.lengths).to(at::kFloat);
    const Tensor rows = batch.places.defined() ? padded_rows(o, batch.places, x.size(0), x.size(1)) : o.unsqueeze(0);
    return at::linear(rows.flatten(2), w.wo);
  }

  /// Of the real bytes, [tokens, 256].
  Tensor logits(const Batch& batch) const {
    Tensor x = at::embedding(embed_, batch.bytes);
    for (const LayerWeights& w : layers_) {
      x = x + attention(normalised(x, w.norm1), w, batch);
      const Tensor h = normalised(x, w.norm2);
      x = x + at::linear(at::silu(at::linear(h, w.gate)) * at::linear(h, w.up), w.down);
    }
    return at::linear(normalised(tokens_of(x, batch), last_norm_), head_);
  }

  const Case c_;
  const std::string text_;
  const c10::Device device_;
  const TrainedAttention attention_;
  std::vector<Weight> weights_;
  std::vector<LayerWeights> layers_;
  Tensor embed_, last_norm_, head_;
  std::vector<Tensor> trained_, velocities_;
  std::vector<std::string> groups_;  ///< of `trained_`
  int64_t done_ = 0;
};

}  // namespace

std::unique_ptr<Trainer> make_small_llama(const Case& c, const std::string& text, const Device& device,
                                          TrainedAttention attention) {
  return std::make_unique<SmallLlama>(c, text, device, std::move(attention));
}

}  // namespace attnbench
