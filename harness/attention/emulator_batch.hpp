// One batch of the emulator: attention in the precision of a profile, of the query heads of some key heads in some sequences, in
// blocks of query rows against all keys that they read. Products are LibTorch's, what happens between them is done row by row
// (emulator_rows.hpp); a block launches work and never waits for it.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/attention/emulator_rows.hpp"

namespace attnbench::emulation {

using at::Tensor;

struct Sequence {
  std::vector<int64_t> q_rows, k_rows;  ///< storage rows; k_rows: real keys, then the padding that uniform empty rows read
  int64_t first_column = 0;             ///< storage row of the kept mask's first column; packed: of the first key
  int64_t real_keys = 0;
  std::vector<QueryPlace> reads;  ///< by query

  int64_t queries() const { return static_cast<int64_t>(q_rows.size()); }
  int64_t keys() const { return static_cast<int64_t>(k_rows.size()); }
  void find_reads(const Problem& problem, Conventions::EmptyRow empty_row);
  /// Nobody reads the others, which may hold anything.
  std::pair<int64_t, int64_t> keys_read() const;
};

/// Some sequences, each of which is padded to the longest, and its keys to whole tiles.
struct Places {
  Places(const std::vector<Sequence>& sequences, c10::Device device);

  int64_t sequences = 0, queries = 0, keys = 0;
  std::vector<std::pair<int64_t, int64_t>> around;  ///< by query: from the first to behind the last key that it reads anywhere
  Tensor of_queries, of_keys;                       ///< QueryPlace, KeyPlace; where the tensors are
};

/// The tensors of a case.
struct CaseTensors {
  CaseTensor q, k, v, dout, o, dq, dk, dv;
};

class Batch {
 public:
  /// setting: its places aside. operand: of rounded values in a product, but for P by tiles, which are rescaled in fp32: the
  /// tensor cores' dtype; on a CPU fp32. places and tensors outlive it.
  Batch(const Setting& setting, const Places& places, const CaseTensors& tensors, const at::TensorOptions& operand);
  void run();  ///< once: writes o, lse, dq, dk and dv of its tokens

 private:
  Tensor gathered(const CaseTensor& from, int64_t channels, bool of_keys) const;
  BlockRows block(int64_t first, int64_t rows) const;
  Tensor matrix(const BlockRows& b, const at::TensorOptions& options) const;
  void compute(const BlockRows& b);
  void add_gradients(const BlockRows& b, const Tensor& P, const OfGradient& known);
  void add(Tensor& sum, const BlockRows& b, const Tensor& product) const;
  int64_t heads() const { return s_.sequences * s_.heads; }
  Tensor of_rows(const Tensor& t, const BlockRows& b) const { return t.narrow(1, b.first, b.rows); }
  Tensor of_keys(const Tensor& t, const BlockRows& b) const { return t.narrow(1, b.key, b.keys); }

  const Places& places_;
  const CaseTensors& tensors_;
  const at::TensorOptions operand_, wide_;
  Setting s_;
  Tensor Q_, K_, V_, G_;  ///< [sequences x heads, queries or keys, channels]
  Tensor dK_, dV_;        ///< by query head, not rounded; undefined before a block has added to them
};

}  // namespace attnbench::emulation
