// What the tests of the cases of `llama` share: a layer that does what a test wants, and its record.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include <ATen/ops/equal.h>

#include "harness/llama/reference.hpp"
#include "harness/run/test_device.hpp"
#include "harness/worker/llama_case.hpp"
#include "harness/worker/test_calibration.hpp"

namespace attnbench::llama_test {

/// A layer that computes, or throws, what a test wants.
class WantedLayer : public LlamaBackend {
 public:
  using Body = std::function<LlamaOutputs(const Case&, const LlamaInputs&, Pass, const Profile&)>;
  explicit WantedLayer(Body body, bool padded_rows_zero = false, Conventions::EmptyRow empty_row = Conventions::EmptyRow::zero)
      : body_(std::move(body)) {
    declaration_.name = "wanted";
    declaration_.operation = "llama";
    declaration_.conventions = {
        .empty_row = empty_row, .lse_empty = Conventions::LseEmpty::none, .padded_rows_zero = padded_rows_zero};
    Capabilities& can = declaration_.capabilities;
    can.devices = {"cpu"};
    can.dtypes = {Dtype::bf16, Dtype::fp16, Dtype::fp32};
    can.passes = {Pass::forward, Pass::backward};
    can.layouts = {Layout::padded, Layout::packed};
    can.masks = {Mask::causal, Mask::none};
    can.aligns = {Align::bottom_right, Align::top_left};
    can.strides = {Strides::contiguous};
    can.window = can.tail = true;
    can.max_head_dim = 512;
    can.returns_lse = false;
  }
  const Declaration& declaration() const override { return declaration_; }
  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    return body_(c, inputs, pass, declaration_.profile);
  }

 private:
  Declaration declaration_;
  Body body_;
};

inline Record record_of(const Case& c, WantedLayer::Body body, Pass pass = Pass::backward, bool padded_rows_zero = false,
                        Conventions::EmptyRow empty_row = Conventions::EmptyRow::zero) {
  Bench bench{kCpu, {}, judge_test::formula_alone()};
  bench.layers.push_back(std::make_unique<WantedLayer>(std::move(body), padded_rows_zero, empty_row));
  Request request;
  request.case_line = format_line(c);
  request.runs = {{"wanted", pass}};
  Record got;
  run_llama_case(c, request, bench, {[](const Stage&) {}, [&](const Record& record) { got = record; }, [](const Comparison&) {}});
  return got;
}

inline LlamaOutputs right_layer(const Case& c, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
  LlamaOutputs outputs = ordinary_layer(c, inputs, {}, profile, pass);
  outputs.ran = c.llama->runs;
  return outputs;
}

/// 0 and -0 are the same.
inline bool same_values(const at::Tensor& a, const at::Tensor& b) {
  return a.defined() == b.defined() && (!a.defined() || at::equal(a, b));
}

}  // namespace attnbench::llama_test
