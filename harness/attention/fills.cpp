#include "harness/attention/fills.hpp"

#include <cmath>

#include "harness/attention/element.hpp"
#include "harness/attention/normal.hpp"
#include "harness/attention/philox.hpp"

namespace attnbench {
namespace {

constexpr float kGarbageValueScale = 16;  // padded rows of V stand out, should they leak

constexpr uint32_t kElements = 0, kRows = 1;  // what is numbered: the last word of the counter

/// The elements of a dtype in memory.
template <Dtype kDtype>
struct Element {
  using Stored = uint16_t;
  ATTNBENCH_ON_BOTH static Stored of(float number) { return bits_of(kDtype, round_to(kDtype, number)); }
};
template <>
struct Element<Dtype::fp32> {
  using Stored = float;
  ATTNBENCH_ON_BOTH static Stored of(float number) { return number; }
};

/// Draws one row of one head.
template <Dtype kDtype>
class RowDrawer {
 public:
  ATTNBENCH_ON_BOTH RowDrawer(const RowTeam& team, const Drawing& drawing, const StorageRow& row, int64_t head, void* to)
      : team_(team),
        drawing_(drawing),
        row_(row),
        number_(static_cast<uint64_t>(row.number * drawing.heads + head)),
        first_(number_ * static_cast<uint64_t>(drawing.channels)),
        to_(static_cast<Stored*>(to)) {}

  ATTNBENCH_ON_BOTH void draw(Holds holds) const {
    switch (holds) {
      case Holds::values:
        return draw(drawing_.values);
      case Holds::garbage:
        return draw(drawing_.garbage);
      case Holds::zeros:
        return constant(0);
      case Holds::nan:
        return constant(NAN);
      case Holds::before:
        return;
    }
  }

 private:
  using Stored = typename Element<kDtype>::Stored;

  ATTNBENCH_ON_BOTH PhiloxWords words(uint64_t number, Stream stream, uint32_t numbered) const {
    return philox4x32_10(
        {static_cast<uint32_t>(number), static_cast<uint32_t>(stream), static_cast<uint32_t>(number >> 32), numbered},
        static_cast<uint32_t>(drawing_.seed), static_cast<uint32_t>(drawing_.seed >> 32));
  }
  ATTNBENCH_ON_BOTH uint32_t row_word(Stream stream) const { return words(number_, stream, kRows).a; }

  /// value(x, words of the element) for every channel x.
  template <typename F>
  ATTNBENCH_ON_BOTH void each(Stream stream, F value) const {
    team_.each(drawing_.channels, [&](int64_t x) {
      to_[x] = Element<kDtype>::of(value(x, words(first_ + static_cast<uint64_t>(x), stream, kElements)));
    });
  }
  ATTNBENCH_ON_BOTH void constant(float number) const {
    team_.each(drawing_.channels, [&](int64_t x) { to_[x] = Element<kDtype>::of(number); });
  }
  ATTNBENCH_ON_BOTH void scaled(Stream stream, float factor) const {
    each(stream, [=](int64_t, const PhiloxWords& w) { return normal_from(w.a, w.b) * factor; });
  }
  ATTNBENCH_ON_BOTH void normal(Stream stream) const { scaled(stream, 1); }
  /// The first `channels` of them by `offset`.
  ATTNBENCH_ON_BOTH void shifted(Stream stream, float offset, int64_t channels) const {
    each(stream, [=](int64_t x, const PhiloxWords& w) {
      const float number = normal_from(w.a, w.b);
      return x < channels ? number + offset : number;
    });
  }

  ATTNBENCH_ON_BOTH void draw(Stream stream) const {
    switch (stream) {
      case Stream::q:
      case Stream::k:
      case Stream::v:
        return draw_qkv(stream);
      case Stream::dout:
        return draw_dout(stream);
      case Stream::q_garbage:
      case Stream::k_garbage:
      case Stream::sink:
        return normal(stream);
      case Stream::v_garbage:
        return scaled(stream, kGarbageValueScale);
    }
  }

  ATTNBENCH_ON_BOTH void draw_qkv(Stream stream) const {
    const bool q = stream == Stream::q, k = stream == Stream::k, v = stream == Stream::v;
    switch (drawing_.fill) {
      case Fill::normal:
        return normal(stream);
      case Fill::peaked:
        return scaled(stream, q ? 4 : 1);
      case Fill::shifted_negative: {
        const float apart = std::sqrt(200.0f * std::sqrt(static_cast<float>(drawing_.channels)));
        return shifted(stream, q ? apart : -apart, v ? 0 : 1);
      }
      case Fill::deep_negative:
        return each(stream, [=](int64_t x, const PhiloxWords& w) {
          return x > 0 || v ? normal_from(w.a, w.b) : q ? kDeepNegative : -kDeepNegative;
        });
      case Fill::ramp:
        return shifted(stream, q ? 6 : 10.0f * static_cast<float>(row_.position) / static_cast<float>(row_.length), v ? 0 : 1);
      case Fill::mean_offset:
        return shifted(stream, k ? 2 : 1.5f, q ? 0 : drawing_.channels);
      case Fill::row_scale:
        return scaled(stream, k ? 1 : std::ldexp(1.0f, static_cast<int>(row_word(stream) % 5) - 2));
      case Fill::sparse_int:
        return each(stream, [](int64_t, const PhiloxWords& w) {
          return w.a % 5 ? 0.0f : static_cast<float>(static_cast<int32_t>(w.b % 5) - 2);
        });
      case Fill::unit:
        return each(stream, [](int64_t, const PhiloxWords& w) { return unit_from(w.a); });
      case Fill::ones_v:
        return v ? constant(1) : normal(stream);
    }
  }

  ATTNBENCH_ON_BOTH void draw_dout(Stream stream) const {
    switch (drawing_.dout) {
      case Dout::normal:
        return normal(stream);
      case Dout::one_hot: {
        const int64_t hot = row_word(stream) % static_cast<uint32_t>(drawing_.channels);
        return team_.each(drawing_.channels, [&](int64_t x) { to_[x] = Element<kDtype>::of(x == hot ? 1 : 0); });
      }
      case Dout::zeros:
        return constant(0);
      case Dout::ones:
        return constant(1);
    }
  }

  const RowTeam& team_;
  const Drawing& drawing_;
  const StorageRow& row_;
  const uint64_t number_;  ///< of the row among those of all heads
  const uint64_t first_;   ///< number of its first element
  Stored* const to_;
};

/// A "row" is one of one head.
template <Dtype kDtype>
struct DrawStep {
  Drawing drawing;
  const StorageRow* rows;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const {
    const int64_t row = index / drawing.stored_heads, head = index % drawing.stored_heads;
    const int64_t place =
        row / drawing.pitch * drawing.sequence_stride + row % drawing.pitch * drawing.row_stride + head * drawing.head_stride;
    const RowOf of = rows[row].of;
    const Holds holds = of == RowOf::token ? drawing.seen : of == RowOf::unseen ? drawing.unseen : drawing.nobody;
    RowDrawer<kDtype>(team, drawing, rows[row], head, static_cast<typename Element<kDtype>::Stored*>(drawing.data) + place)
        .draw(holds);
  }
};

}  // namespace

void draw_rows(bool on_gpu, const Drawing& drawing, const StorageRow* rows, int64_t count) {
  const auto run = [&](const auto& step) { for_each_row(on_gpu, count * drawing.stored_heads, drawing.channels, step); };
  switch (drawing.dtype) {
    case Dtype::bf16:
      return run(DrawStep<Dtype::bf16>{drawing, rows});
    case Dtype::fp16:
      return run(DrawStep<Dtype::fp16>{drawing, rows});
    case Dtype::fp32:
      return run(DrawStep<Dtype::fp32>{drawing, rows});
  }
}

}  // namespace attnbench
