// Gathers the real tokens of a case, asks an oracle about every head and sums over the heads of a group.
#include "harness/attention/reference.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>

#include <ATen/Parallel.h>

#include "harness/attention/oracle.hpp"
#include "harness/attention/parallel.hpp"
#include "harness/attention/tokens.hpp"

namespace attnbench {
namespace {

constexpr size_t kScoreSamples = 8192;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Storage rows of a sequence's padding, read by uniform empty rows only.
std::vector<int64_t> padding_rows(const std::vector<int64_t>& real, int64_t begin, int64_t end, int64_t first, int64_t pitch) {
  std::vector<int64_t> rows;
  for (int64_t row = first; row < first + pitch; ++row)
    if (!std::binary_search(real.begin() + begin, real.begin() + end, row)) rows.push_back(row);
  return rows;
}

/// All heads of a case as float64 tokens.
class Heads {
 public:
  Heads(const Case& c, const Inputs& inputs, const Profile& profile, const Conventions& conventions);

  int64_t count() const { return static_cast<int64_t>(inputs_.lengths.q.size()) * problem_.hq; }
  int64_t sequence(int64_t i) const { return i / problem_.hq; }
  int64_t head(int64_t i) const { return i % problem_.hq; }
  int64_t key_head(int64_t i) const { return head(i) / problem_.group(); }
  int64_t first_query(int64_t i) const { return q_offsets_[sequence(i)]; }
  int64_t first_key(int64_t i) const { return k_offsets_[sequence(i)]; }
  const Problem& problem() const { return problem_; }
  const Rounding& rounding() const { return rounding_; }
  int64_t queries() const { return q_offsets_.back(); }
  int64_t keys() const { return k_offsets_.back(); }

  /// Calls body with head i; its pointers live until body returns.
  void with_head(int64_t i, const std::function<void(const HeadProblem&)>& body) const;

 private:
  const Problem& problem_;
  const Inputs& inputs_;
  Conventions conventions_;
  Rounding rounding_;
  std::vector<int64_t> q_offsets_, k_offsets_;
  std::vector<double> q_, k_, v_, dout_;
  std::vector<std::vector<double>> k_padding_, v_padding_;  ///< by sequence; empty unless empty rows are uniform
};

void refuse_unknown(const Problem& p, const Case& c) {
  if (p.softcap != 0 || p.alibi || p.sink || p.dropout.p != 0)
    throw std::invalid_argument("the float64 oracles know no softcap, alibi, sink or dropout: " + format_case(c));
}

Heads::Heads(const Case& c, const Inputs& inputs, const Profile& profile, const Conventions& conventions)
    : problem_(c.problem), inputs_(inputs), conventions_(conventions) {
  refuse_unknown(problem_, c);
  const Problem& p = problem_;
  rounding_ = rounding_of(profile, p, inputs.scale);
  q_offsets_ = offsets_of(inputs.lengths.q);
  k_offsets_ = offsets_of(inputs.lengths.k);
  q_ = tokens_of(inputs.q, inputs.q_rows, p.hq, p.d);
  dout_ = tokens_of(inputs.dout, inputs.q_rows, p.hq, p.dv);
  k_ = tokens_of(inputs.k, inputs.k_rows, p.hkv, p.d);
  v_ = tokens_of(inputs.v, inputs.k_rows, p.hkv, p.dv);
  const size_t sequences = inputs.lengths.q.size();
  k_padding_.resize(sequences);
  v_padding_.resize(sequences);
  if (p.layout != Layout::padded || conventions.empty_row != Conventions::EmptyRow::uniform) return;
  for (size_t n = 0; n < sequences; ++n) {
    const int64_t pitch = inputs.lengths.k_pitch;
    const auto rows = padding_rows(inputs.k_rows, k_offsets_[n], k_offsets_[n + 1], static_cast<int64_t>(n) * pitch, pitch);
    k_padding_[n] = tokens_of(inputs.k, rows, p.hkv, p.d);
    v_padding_[n] = tokens_of(inputs.v, rows, p.hkv, p.dv);
  }
}

void Heads::with_head(int64_t i, const std::function<void(const HeadProblem&)>& body) const {
  const Problem& p = problem_;
  const int64_t n = sequence(i), hk = key_head(i);
  HeadProblem h;
  h.queries = inputs_.lengths.q[n];
  h.keys = inputs_.lengths.k[n];
  h.d = p.d;
  h.dv = p.dv;
  const auto keys = [&](const std::vector<double>& real, const std::vector<double>& padding, int64_t channels) {
    std::vector<double> rows = head_of(real, k_offsets_[n], h.keys, p.hkv, hk, channels);
    const int64_t padded = static_cast<int64_t>(padding.size()) / (p.hkv * channels);
    const std::vector<double> rest = head_of(padding, 0, padded, p.hkv, hk, channels);
    rows.insert(rows.end(), rest.begin(), rest.end());
    return rows;
  };
  const std::vector<double> q = head_of(q_, q_offsets_[n], h.queries, p.hq, head(i), p.d);
  const std::vector<double> dout = head_of(dout_, q_offsets_[n], h.queries, p.hq, head(i), p.dv);
  const std::vector<double> k = keys(k_, k_padding_[n], p.d), v = keys(v_, v_padding_[n], p.dv);
  h.q = q.data();
  h.k = k.data();
  h.v = v.data();
  h.dout = dout.data();
  h.stored_keys = static_cast<int64_t>(k.size()) / p.d;
  h.problem = &p;
  h.scale = inputs_.scale;
  h.empty_row = conventions_.empty_row;
  h.rounding = rounding_;
  body(h);
}

/// While it lives, LibTorch runs every operation of the threads that called enter() on that thread alone.
class OneThreadPerHead {
 public:
  OneThreadPerHead() : threads_(at::get_num_threads()) {}
  ~OneThreadPerHead() { at::set_num_threads(threads_); }
  void enter() const { at::set_num_threads(1); }

 private:
  int threads_;
};

/// Heads are spread over the cores, not the operations within them: a head's result does not depend on the number of
/// threads, and small operations do not wait for each other.
void for_each_head(c10::Device device, int64_t count, const std::function<void(int64_t)>& body) {
  if (!device.is_cpu()) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  const OneThreadPerHead one_thread;
  for_each_in_parallel(count, [&](int64_t i) {
    one_thread.enter();
    body(i);
  });
}

/// Places one head's rows [count][channels] into [token][heads][channels].
void place(const std::vector<double>& rows, int64_t first, int64_t heads, int64_t head, int64_t channels,
           std::vector<double>& to) {
  const int64_t count = static_cast<int64_t>(rows.size()) / channels;
  for (int64_t t = 0; t < count; ++t)
    std::copy_n(rows.data() + t * channels, channels, to.data() + ((first + t) * heads + head) * channels);
}

/// Adds the first `count` rows of a head to its key head's place.
void add(const std::vector<double>& rows, int64_t count, int64_t first, int64_t heads, int64_t head, int64_t channels,
         std::vector<double>& to) {
  for (int64_t t = 0; t < count; ++t)
    for (int64_t x = 0; x < channels; ++x) to[((first + t) * heads + head) * channels + x] += rows[t * channels + x];
}

/// Adds one head's share of dk or dv, with the rounding of the partial sum where the profile rounds it.
void add_share(const std::vector<double>& value, const std::vector<double>& variance, int64_t count, int64_t first, int64_t heads,
               int64_t head, int64_t channels, const Rounding& r, Expected& to) {
  add(value, count, first, heads, head, channels, to.value);
  add(variance, count, first, heads, head, channels, to.variance);
  if (!r.gqa_partials) return;
  for (int64_t t = 0; t < count; ++t)
    for (int64_t x = 0; x < channels; ++x)
      to.variance[((first + t) * heads + head) * channels + x] += rounding_variance(r.dtype, value[t * channels + x]);
}

/// What depends on the sum over the group: its rounding, its systematic part, in fp32 its accumulation. A key that no
/// query reads has a gradient of exactly 0: variance 0.
void finish_sum(const std::vector<char>& seen, int64_t channels, const Rounding& r, const std::function<double(size_t)>& terms,
                Expected& sum) {
  for (size_t row = 0; row < seen.size(); ++row) {
    for (size_t at = row * channels; at < (row + 1) * channels; ++at) {
      const double x = sum.value[at], b = sum.allowance.empty() ? 0 : sum.allowance[at];
      sum.variance[at] += rounding_variance(r.dtype, x) + b * b + r.accumulation * terms(row) * x * x;
      if (!seen[row]) sum.variance[at] = 0;
    }
  }
}

void add_allowance(Expected& x) {
  for (size_t at = 0; at < x.variance.size(); ++at)
    if (x.variance[at] != 0) x.variance[at] += x.allowance[at] * x.allowance[at];
}

/// Distinct values among the samples, where fewer than half of them are (integer data: equal scores round alike).
double distinct_scores(std::vector<double> samples) {
  if (samples.size() <= 64) return kInfinity;
  std::sort(samples.begin(), samples.end());
  size_t distinct = 1;
  for (size_t i = 1; i < samples.size(); ++i) distinct += samples[i] - samples[i - 1] > 1e-6 * (1 + std::abs(samples[i]));
  return 2 * distinct < samples.size() ? static_cast<double>(distinct) : kInfinity;
}

Expected expected(int64_t rows, int64_t channels, bool allowance) {
  Expected x;
  x.value.assign(rows * channels, 0);
  x.variance = x.value;
  if (allowance) x.allowance = x.value;
  x.freedom.assign(rows, 1);
  return x;
}

/// Collects the heads' answers, in the order of the heads.
class Collector {
 public:
  Collector(const Heads& heads, const Inputs& inputs, const Conventions& conventions)
      : heads_(heads), inputs_(inputs), conventions_(conventions) {
    const Problem& p = heads.problem();
    const int64_t q_rows = heads.queries() * p.hq, k_rows = heads.keys() * p.hkv;
    out_.o = expected(q_rows, p.dv, false);
    out_.lse = expected(q_rows, 1, false);
    out_.dq = expected(q_rows, p.d, true);
    out_.dk = expected(k_rows, p.d, true);
    out_.dv = expected(k_rows, p.dv, false);
    p2_.assign(k_rows, 0);
    p4_ = ds2_ = ds4_ = p2_;
    seen_.assign(k_rows, 0);
  }

  void add_head(int64_t i, const HeadAnswer& a);
  Reference finish();

 private:
  void add_keys(int64_t i, const HeadAnswer& a);

  const Heads& heads_;
  const Inputs& inputs_;
  Conventions conventions_;
  Reference out_;
  std::vector<double> p2_, p4_, ds2_, ds4_, samples_;
  std::vector<char> seen_;
};

void Collector::add_head(int64_t i, const HeadAnswer& a) {
  const Problem& p = heads_.problem();
  const int64_t first = heads_.first_query(i), head = heads_.head(i);
  place(a.o, first, p.hq, head, p.dv, out_.o.value);
  place(a.o_variance, first, p.hq, head, p.dv, out_.o.variance);
  place(a.o_freedom, first, p.hq, head, 1, out_.o.freedom);
  place(a.dq, first, p.hq, head, p.d, out_.dq.value);
  place(a.dq_variance, first, p.hq, head, p.d, out_.dq.variance);
  place(a.dq_allowance, first, p.hq, head, p.d, out_.dq.allowance);
  place(a.dq_freedom, first, p.hq, head, 1, out_.dq.freedom);
  for (size_t t = 0; t < a.lse.size(); ++t) {
    const size_t at = (first + t) * p.hq + head;
    const bool empty = a.lse[t] == -kInfinity;
    out_.lse.value[at] = empty ? lse_of_empty_row(conventions_.lse_empty) : a.lse[t];
    out_.lse.variance[at] = a.lse_sigma[t] * a.lse_sigma[t];
  }
  if (!a.has_power) out_.has_power = false;
  const size_t room = kScoreSamples - std::min(kScoreSamples, samples_.size());
  samples_.insert(samples_.end(), a.score_samples.begin(),
                  a.score_samples.begin() + static_cast<int64_t>(std::min(room, a.score_samples.size())));
  add_keys(i, a);
}

void Collector::add_keys(int64_t i, const HeadAnswer& a) {
  const Problem& p = heads_.problem();
  const int64_t first = heads_.first_key(i), head = heads_.key_head(i), count = inputs_.lengths.k[heads_.sequence(i)];
  const Rounding& r = heads_.rounding();
  add_share(a.dk, a.dk_variance, count, first, p.hkv, head, p.d, r, out_.dk);
  add_share(a.dv, a.dv_variance, count, first, p.hkv, head, p.dv, r, out_.dv);
  add(a.dk_allowance, count, first, p.hkv, head, p.d, out_.dk.allowance);
  add(a.p2, count, first, p.hkv, head, 1, p2_);
  add(a.p4, count, first, p.hkv, head, 1, p4_);
  add(a.ds2, count, first, p.hkv, head, 1, ds2_);
  add(a.ds4, count, first, p.hkv, head, 1, ds4_);
  for (int64_t t = 0; t < count; ++t) seen_[(first + t) * p.hkv + head] |= a.key_seen[t];
}

/// Queries x group heads that a row of dk or dv sums over.
std::function<double(size_t)> terms_per_key_row(const Heads& heads, const Inputs& inputs) {
  const Problem& p = heads.problem();
  std::vector<double> terms;
  for (size_t n = 0; n < inputs.lengths.k.size(); ++n)
    terms.insert(terms.end(), inputs.lengths.k[n] * p.hkv, static_cast<double>(inputs.lengths.q[n] * p.group()));
  return [terms = std::move(terms)](size_t row) { return terms[row]; };
}

Reference Collector::finish() {
  const Problem& p = heads_.problem();
  const Rounding& r = heads_.rounding();
  const auto terms = terms_per_key_row(heads_, inputs_);
  finish_sum(seen_, p.d, r, terms, out_.dk);
  finish_sum(seen_, p.dv, r, terms, out_.dv);
  add_allowance(out_.dq);
  const auto sources = [](double sum2, double sum4, int64_t channels) {
    return sum4 > 0 ? std::clamp(sum2 * sum2 / sum4, 1.0, static_cast<double>(channels)) : 1;
  };
  for (size_t row = 0; row < seen_.size(); ++row) {
    out_.dk.freedom[row] = sources(ds2_[row], ds4_[row], p.d);
    out_.dv.freedom[row] = sources(p2_[row], p4_[row], p.dv);
  }
  out_.distinct_scores = r.p ? distinct_scores(std::move(samples_)) : kInfinity;
  return std::move(out_);
}

}  // namespace

Reference make_reference(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile,
                         const Conventions& conventions) {
  const Heads heads(c, inputs, profile, conventions);
  std::vector<HeadAnswer> answers(heads.count());
  for_each_head(inputs.q.device(), heads.count(), [&](int64_t i) {
    heads.with_head(i, [&](const HeadProblem& h) {
      answers[i] = kind == OracleKind::eigen ? eigen_head(h) : torch_head(h, inputs.q.device());
    });
  });
  Collector collector(heads, inputs, conventions);
  for (int64_t i = 0; i < heads.count(); ++i) collector.add_head(i, answers[i]);
  Reference reference = collector.finish();
  reference.oracle = kind == OracleKind::eigen ? "eigen" : "torch";
  return reference;
}

ConditionalGradients given_output(OracleKind kind, const Case& c, const Inputs& inputs, const Profile& profile,
                                  const Conventions& conventions, const Reference& reference, const at::Tensor& o) {
  const Heads heads(c, inputs, profile, conventions);
  const Problem& p = heads.problem();
  std::vector<double> given = tokens_of(o, inputs.q_rows, p.hq, p.dv);
  for (size_t at = 0; at < given.size(); ++at)  // what is not finite fails as O; it must not excuse the gradients
    if (!std::isfinite(given[at])) given[at] = reference.o.value[at];
  std::vector<HeadGradients> answers(heads.count());
  for_each_head(inputs.q.device(), heads.count(), [&](int64_t i) {
    heads.with_head(i, [&](const HeadProblem& h) {
      const auto o_head = head_of(given, heads.first_query(i), h.queries, p.hq, heads.head(i), p.dv);
      answers[i] = kind == OracleKind::eigen ? eigen_head_given_output(h, o_head.data())
                                             : torch_head_given_output(h, o_head.data(), inputs.q.device());
    });
  });
  ConditionalGradients out{expected(heads.queries() * p.hq, p.d, false), expected(heads.keys() * p.hkv, p.d, false)};
  out.dq.allowance = reference.dq.allowance;
  out.dq.freedom = reference.dq.freedom;
  out.dk.allowance = reference.dk.allowance;
  out.dk.freedom = reference.dk.freedom;
  for (int64_t i = 0; i < heads.count(); ++i) {
    const HeadGradients& a = answers[i];
    place(a.dq, heads.first_query(i), p.hq, heads.head(i), p.d, out.dq.value);
    place(a.dq_variance, heads.first_query(i), p.hq, heads.head(i), p.d, out.dq.variance);
    add_share(a.dk, a.dk_variance, inputs.lengths.k[heads.sequence(i)], heads.first_key(i), p.hkv, heads.key_head(i), p.d,
              heads.rounding(), out.dk);
  }
  std::vector<char> seen(out.dk.freedom.size());
  for (size_t row = 0; row < seen.size(); ++row) seen[row] = reference.dk.variance[row * p.d] != 0;
  finish_sum(seen, p.d, heads.rounding(), terms_per_key_row(heads, inputs), out.dk);
  add_allowance(out.dq);
  return out;
}

}  // namespace attnbench
