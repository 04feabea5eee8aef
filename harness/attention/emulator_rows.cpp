#include "harness/attention/emulator_rows.hpp"

#include <stdexcept>
#include <type_traits>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace attnbench::emulation {
namespace {

template <Dtype dtype>
using Number =
    std::conditional_t<dtype == Dtype::bf16, c10::BFloat16, std::conditional_t<dtype == Dtype::fp16, c10::Half, float>>;

template <Dtype dtype>
ATTNBENCH_ON_BOTH float read(const void* data, int64_t at) {
  return static_cast<const Number<dtype>*>(data)[at];
}
template <Dtype dtype>
ATTNBENCH_ON_BOTH float read(const Operand& operand, int64_t at) {
  return operand.narrow ? read<dtype>(operand.narrow, at) : operand.wide[at];
}
template <Dtype dtype>
ATTNBENCH_ON_BOTH void write(void* data, int64_t at, float x) {
  static_cast<Number<dtype>*>(data)[at] = x;
}
template <Dtype dtype>
ATTNBENCH_ON_BOTH void write(const Operand& operand, int64_t at, float x) {
  if (operand.narrow)
    write<dtype>(operand.narrow, at, x);
  else
    operand.wide[at] = x;
}

/// 0 for the maximum of a row that reads nothing.
ATTNBENCH_ON_BOTH float finite(float m) {
  return m == -INFINITY ? 0 : m;
}

/// Which row of a block it is, and what it reads.
struct QueryRow {
  ATTNBENCH_ON_BOTH QueryRow(const BlockRows& b, int64_t index) : QueryRow(b, index, index / b.rows, b.first + index % b.rows) {}

  ATTNBENCH_ON_BOTH bool exists() const { return place.row >= 0; }
  ATTNBENCH_ON_BOTH bool reads_any() const { return place.begin < place.end; }

  QueryPlace place;
  int64_t matrix;        ///< its first element in a matrix
  int64_t of_all;        ///< its number among the queries of all heads
  int64_t head;          ///< of the case
  const KeyPlace* keys;  ///< of its sequence

 private:
  ATTNBENCH_ON_BOTH QueryRow(const BlockRows& b, int64_t index, int64_t batch_head, int64_t query)
      : place(b.s.of_queries[batch_head / b.s.heads * b.s.queries + query]),
        matrix(index * b.keys),
        of_all(batch_head * b.s.queries + query),
        head(b.s.first_head + batch_head % b.s.heads),
        keys(b.s.of_keys + batch_head / b.s.heads * b.s.keys) {}
};

/// A tile of a row, and the elements [from, to) of it that the row reads.
struct Tile {
  ATTNBENCH_ON_BOTH Tile(const BlockRows& b, const QueryRow& row, int64_t tile)
      : at(row.matrix + tile * kTile),
        key(b.key + tile * kTile),
        from(row.place.begin > key ? row.place.begin - key : 0),
        to(row.place.end - key < kTile ? row.place.end - key : kTile) {}

  ATTNBENCH_ON_BOTH bool hidden() const { return from >= to; }
  ATTNBENCH_ON_BOTH bool whole() const { return from == 0 && to == kTile; }

  int64_t at, key;  ///< its first element in a matrix; its first key
  int64_t from, to;
};

/// x[i] times what dropout multiplies P by.
ATTNBENCH_ON_BOTH void drop(const TileTeam& team, const Setting& s, const QueryRow& row, const Tile& tile, float* x) {
  if (!s.kept) return;
  const bool* kept = s.kept + (row.place.row * s.all_heads + row.head) * s.kept_columns;
  const KeyPlace* keys = row.keys + tile.key;
  const float factor = s.kept_factor;
  team.each([=](int64_t i) { x[i] *= kept[keys[i].column] ? factor : 0; });
}

/// Scores and the softmax of them.
template <Dtype dtype>
struct SoftmaxStep {
  BlockRows b;
  OfScores x;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const;

 private:
  ATTNBENCH_ON_BOTH float score(const TileTeam& team, const QueryRow& row, const Tile& tile) const;
  ATTNBENCH_ON_BOTH static void exponentials(const TileTeam& team, const Tile& tile, const float* S, float shift, float* P);
  ATTNBENCH_ON_BOTH float weigh_online(const TileTeam& team, const QueryRow& row, const Tile& tile, float so_far, float m) const;
  ATTNBENCH_ON_BOTH void weigh_normalised(const TileTeam& team, const QueryRow& row, const Tile& tile) const;
};

/// What the softmax is of; hidden keys -inf, and a filled row reads equal scores. Its largest.
template <Dtype dtype>
ATTNBENCH_ON_BOTH float SoftmaxStep<dtype>::score(const TileTeam& team, const QueryRow& row, const Tile& tile) const {
  const Setting& s = b.s;
  float* S = x.S + tile.at;
  if (tile.hidden()) {
    team.each([=](int64_t i) { S[i] = -INFINITY; });
    return -INFINITY;
  }
  const float scale = s.scale;
  if (s.rounding.scores)
    team.each([=](int64_t i) { S[i] = round_to(dtype, round_to(dtype, S[i]) * scale); });
  else
    team.each([=](int64_t i) { S[i] *= scale; });
  if (s.softcap != 0) {
    const float softcap = s.softcap;
    float* tanh = x.tanh + tile.at;
    team.each([=](int64_t i) {
      tanh[i] = std::tanh(S[i] / softcap);
      S[i] = tanh[i] * softcap;
    });
  }
  if (s.slopes) {
    const float slope = s.slopes[row.head];
    const int64_t distance = row.place.diagonal - tile.key;
    team.each([=](int64_t i) { S[i] -= std::fabs(static_cast<float>(distance - i)) * slope; });
  }
  if (row.place.filled) {
    const float filler = s.filler;
    team.each([=](int64_t i) { S[i] = filler; });
  }
  if (!tile.whole()) {
    const int64_t from = tile.from, to = tile.to;
    team.each([=](int64_t i) { S[i] = i >= from && i < to ? S[i] : -INFINITY; });
  }
  return team.max([=](int64_t i) { return S[i]; });
}

/// Of hidden keys 0 in a row of NaN too. P may be S.
template <Dtype dtype>
ATTNBENCH_ON_BOTH void SoftmaxStep<dtype>::exponentials(const TileTeam& team, const Tile& tile, const float* S, float shift,
                                                        float* P) {
  if (tile.hidden()) return team.each([=](int64_t i) { P[i] = 0; });
  team.each([=](int64_t i) { P[i] = exponential(S[i] - shift); });
  if (tile.whole()) return;
  const int64_t from = tile.from, to = tile.to;
  team.each([=](int64_t i) { P[i] = i >= from && i < to ? P[i] : 0; });
}

/// P of a tile relative to the maximum so far, rescaled to that of the row, m. Their sum before they are rounded.
template <Dtype dtype>
ATTNBENCH_ON_BOTH float SoftmaxStep<dtype>::weigh_online(const TileTeam& team, const QueryRow& row, const Tile& tile,
                                                         float so_far, float m) const {
  float* W = x.W + tile.at;
  exponentials(team, tile, x.S + tile.at, finite(so_far), W);
  if (tile.hidden()) return 0;
  const float sum = team.sum([=](int64_t i) { return W[i]; }), shrink = exponential(so_far - m);
  drop(team, b.s, row, tile, W);
  if (b.s.rounding.p) team.each([=](int64_t i) { W[i] = round_to(dtype, W[i]); });
  team.each([=](int64_t i) { W[i] *= shrink; });
  return sum * shrink;
}

/// W of a tile of the softmax itself.
template <Dtype dtype>
ATTNBENCH_ON_BOTH void SoftmaxStep<dtype>::weigh_normalised(const TileTeam& team, const QueryRow& row, const Tile& tile) const {
  const float* P = x.S + tile.at;
  float* W = x.W + tile.at;
  team.each([=](int64_t i) { W[i] = P[i]; });
  if (!tile.hidden()) drop(team, b.s, row, tile, W);
  team.each([=](int64_t i) { W[i] = round_to(dtype, W[i]); });
  if (!x.narrow_W) return;
  void* narrow_W = x.narrow_W;
  const int64_t at = tile.at;
  team.each([=](int64_t i) { write<dtype>(narrow_W, at + i, W[i]); });
}

template <Dtype dtype>
ATTNBENCH_ON_BOTH void SoftmaxStep<dtype>::operator()(const RowTeam& team, int64_t index) const {
  const QueryRow row(b, index);
  const Setting& s = b.s;
  const Rounding& r = s.rounding;
  const int64_t tiles = tiles_of(b.keys);
  float* maxima = x.tile_maxima + index * tiles;
  float largest = -INFINITY, sum = 0;
  each_tile(tiles, [&](const TileTeam& threads, int64_t tile) {
    const float of_tile = score(threads, row, Tile(b, row, tile));
    if (threads.writes()) maxima[tile] = of_tile;
    largest = larger(of_tile, largest);
  });
  largest = static_cast<float>(team.max(largest));  // behind which all threads see all maxima
  const float sink = s.sinks && !row.place.filled ? s.sinks[row.head] : -INFINITY;
  const float m = finite(larger(largest, sink));
  each_tile(tiles, [&](const TileTeam& threads, int64_t number) {
    const Tile tile(b, row, number);
    float* P = x.S + tile.at;
    float of_tile = 0;
    if (r.p_normalised) {
      exponentials(threads, tile, P, m, P);
      if (!tile.hidden()) of_tile = threads.sum([=](int64_t i) { return P[i]; });
    } else {
      of_tile = weigh_online(threads, row, tile, larger(threads.max_of(maxima, number), sink), m);
    }
    if (threads.writes()) sum += of_tile;
  });
  float l = static_cast<float>(team.sum(sum)) + exponential(sink - m);
  if (l == 0) l = 1;
  const float L = m + std::log(l);
  each_tile(tiles, [&](const TileTeam& threads, int64_t number) {
    const Tile tile(b, row, number);
    float* P = x.S + tile.at;
    if (!r.p_normalised) exponentials(threads, tile, P, r.d_from_output ? L : m, P);
    if (r.p_normalised || !r.d_from_output) threads.each([=](int64_t i) { P[i] /= l; });
    if (r.p_normalised) weigh_normalised(threads, row, tile);
  });
  if (!team.writes()) return;
  x.l[index] = l;
  if (row.exists()) s.lse[row.place.row * s.all_heads + row.head] = row.place.filled || !row.reads_any() ? -INFINITY : L;
}

/// D is summed pairwise: in the order of a product, the D of a row with one key would be its dP to the last bit.
template <Dtype dtype>
struct OutputStep {
  BlockRows b;
  OfOutput x;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const {
    const QueryRow row(b, index);
    const Rounding& r = b.s.rounding;
    const float l = r.p_normalised ? 1 : x.l[index];
    float D = 0;
    each_tile(tiles_of(b.s.dv), [&](const TileTeam& threads, int64_t tile) {
      const int64_t channel = tile * kTile, channels = b.s.dv - channel, first = row.of_all * b.s.dv + channel;
      float* O = x.O + index * b.s.dv + channel;
      threads.each([=](int64_t i) {
        if (i < channels) O[i] = round_to(dtype, O[i] / l);
      });
      if (row.exists()) write_tile(threads, row, channel, O);
      if (!r.d_from_output) return;
      const Operand G = x.G;
      const float of_tile = threads.sum([=](int64_t i) { return i < channels ? O[i] * read<dtype>(G, first + i) : 0; });
      if (threads.writes()) D += of_tile;
    });
    if (!r.d_from_output) return;
    D = static_cast<float>(team.sum(D));
    if (team.writes()) x.D[index] = D;
  }

 private:
  ATTNBENCH_ON_BOTH void write_tile(const TileTeam& team, const QueryRow& row, int64_t channel, const float* O) const {
    void* data = x.o.data;
    const int64_t first = x.o.at(row.place.row, row.head, channel), stride = x.o.channel_stride, channels = b.s.dv - channel;
    team.each([=](int64_t i) {
      if (i < channels) write<dtype>(data, first + i * stride, O[i]);
    });
  }
};

template <Dtype dtype>
struct GradientStep {
  BlockRows b;
  OfGradient x;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const {
    const QueryRow row(b, index);
    float D = 0;
    each_tile(tiles_of(b.keys), [&](const TileTeam& threads, int64_t number) {
      const Tile tile(b, row, number);
      if (tile.hidden()) return;
      const float *P = x.P + tile.at, *dP = x.dP + tile.at;
      round_dP(threads, row, tile);
      if (b.s.rounding.d_from_output) return;
      const float of_tile = threads.sum([=](int64_t i) { return P[i] * dP[i]; });
      if (threads.writes()) D += of_tile;
    });
    D = b.s.rounding.d_from_output ? x.D[index] : static_cast<float>(team.sum(D));
    each_tile(tiles_of(b.keys), [&](const TileTeam& threads, int64_t number) {
      const Tile tile(b, row, number);
      if (tile.hidden())
        write_nothing(threads, tile);
      else
        differentiate(threads, row, tile, D);
    });
  }

 private:
  ATTNBENCH_ON_BOTH void round_dP(const TileTeam& team, const QueryRow& row, const Tile& tile) const {
    float* dP = x.dP + tile.at;
    if (b.s.rounding.scores) team.each([=](int64_t i) { dP[i] = round_to(dtype, dP[i]); });
    drop(team, b.s, row, tile, dP);
  }
  ATTNBENCH_ON_BOTH void write_nothing(const TileTeam& team, const Tile& tile) const;
  ATTNBENCH_ON_BOTH void differentiate(const TileTeam& team, const QueryRow& row, const Tile& tile, float D) const;
  ATTNBENCH_ON_BOTH void round_products(const TileTeam& team, float* P, float* dS) const;
};

template <Dtype dtype>
ATTNBENCH_ON_BOTH void GradientStep<dtype>::write_nothing(const TileTeam& team, const Tile& tile) const {
  const OfGradient x = this->x;
  const int64_t at = tile.at;
  team.each([=](int64_t i) { x.P[at + i] = 0, x.dP[at + i] = 0; });
  if (!x.narrow_P) return;
  team.each([=](int64_t i) {
    write<dtype>(x.narrow_P, at + i, 0);
    write<dtype>(x.narrow_dS, at + i, 0);
  });
}

template <Dtype dtype>
ATTNBENCH_ON_BOTH void GradientStep<dtype>::differentiate(const TileTeam& team, const QueryRow& row, const Tile& tile,
                                                          float D) const {
  float *P = x.P + tile.at, *dS = x.dP + tile.at;
  if (b.s.rounding.ds_from_rounded_p) team.each([=](int64_t i) { P[i] = round_to(dtype, P[i]); });
  team.each([=](int64_t i) { dS[i] = (dS[i] - D) * P[i]; });
  if (x.tanh) {
    const float* tanh = x.tanh + tile.at;
    team.each([=](int64_t i) { dS[i] *= 1 - tanh[i] * tanh[i]; });
  }
  drop(team, b.s, row, tile, P);
  round_products(team, P, dS);
  if (!x.narrow_P) return;
  void *narrow_P = x.narrow_P, *narrow_dS = x.narrow_dS;
  const int64_t at = tile.at;
  team.each([=](int64_t i) {
    write<dtype>(narrow_P, at + i, P[i]);
    write<dtype>(narrow_dS, at + i, dS[i]);
  });
}

/// P and dS as they are stored.
template <Dtype dtype>
ATTNBENCH_ON_BOTH void GradientStep<dtype>::round_products(const TileTeam& team, float* P, float* dS) const {
  const Rounding& r = b.s.rounding;
  const float scale = b.s.scale;
  if (!r.ds && !r.scores) return;
  if (r.scales_ds) team.each([=](int64_t i) { dS[i] *= scale; });
  team.each([=](int64_t i) {
    dS[i] = round_to(dtype, dS[i]);
    P[i] = round_to(dtype, P[i]);
  });
  if (r.scores) team.each([=](int64_t i) { dS[i] = round_to(dtype, dS[i] * scale); });
}

/// What dS K or dS^T Q is multiplied by behind the product.
ATTNBENCH_ON_BOTH float scale_behind(const Setting& s) {
  return s.rounding.scores || s.rounding.scales_ds ? 1 : s.scale;
}

template <Dtype dtype>
struct QueryGradientStep {
  BlockRows b;
  const float* product;
  CaseTensor dq;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const {
    const QueryRow row(b, index);
    if (!row.exists()) return;
    team.each(b.s.d, [&](int64_t channel) {
      write<dtype>(dq.data, dq.at(row.place.row, row.head, channel), product[index * b.s.d + channel] * scale_behind(b.s));
    });
  }
};

/// A row is a key of a key head.
template <Dtype dtype>
struct KeyGradientStep {
  Setting s;
  const float* by_head;
  int64_t channels;
  bool scaled;
  CaseTensor gradient;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const {
    const int64_t key_heads = s.heads / s.group, key = index % s.keys, head = index / s.keys;
    const KeyPlace place = s.of_keys[head / key_heads * s.keys + key];
    if (!place.real) return;
    const float scale = scaled ? scale_behind(s) : 1;
    team.each(channels, [&](int64_t channel) {
      float sum = 0;
      for (int64_t query_head = head * s.group; query_head < (head + 1) * s.group; ++query_head) {
        const float partial = by_head[(query_head * s.keys + key) * channels + channel] * scale;
        sum += s.rounding.gqa_partials ? round_to(dtype, partial) : partial;
      }
      write<dtype>(gradient.data, gradient.at(place.row, s.first_head / s.group + head % key_heads, channel), sum);
    });
  }
};

/// A row is a query, or a key, of a query head.
template <Dtype dtype>
struct GatherStep {
  Setting s;
  bool of_keys;
  CaseTensor from;
  int64_t channels;
  Operand to;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const {
    const int64_t longest = of_keys ? s.keys : s.queries, batch_head = index / longest, token = index % longest;
    const int64_t sequence = batch_head / s.heads, query_head = s.first_head + batch_head % s.heads;
    const KeyPlace* key = of_keys ? s.of_keys + sequence * longest + token : nullptr;
    const int64_t row = !key ? s.of_queries[sequence * longest + token].row : key->read ? key->row : -1;
    const int64_t head = of_keys ? query_head / s.group : query_head;
    const int64_t first = from.at(row, head, 0), stride = from.channel_stride, here = index * channels;
    const void* data = from.data;
    const Operand batch = to;
    if (row < 0) return team.each(channels, [=](int64_t channel) { write<dtype>(batch, here + channel, 0); });
    team.each(channels,
              [=](int64_t channel) { write<dtype>(batch, here + channel, read<dtype>(data, first + channel * stride)); });
  }
};

/// For so many elements of a row in tiles: a warp works on two a thread.
int64_t threads_for(int64_t elements) {
  return tiles_of(elements) * kTile / 2;
}

/// f(dtype as a type).
template <typename F>
void with_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::bf16:
      return f(std::integral_constant<Dtype, Dtype::bf16>());
    case Dtype::fp16:
      return f(std::integral_constant<Dtype, Dtype::fp16>());
    case Dtype::fp32:
      return f(std::integral_constant<Dtype, Dtype::fp32>());
  }
  throw std::invalid_argument("the emulator: not a dtype");
}

}  // namespace

void gather_queries(const Setting& s, const CaseTensor& from, int64_t channels, const Operand& to) {
  with_dtype(s.rounding.dtype, [&](auto dtype) {
    for_each_row(s.on_gpu, s.sequences * s.heads * s.queries, channels, GatherStep<dtype()>{s, false, from, channels, to});
  });
}

void gather_keys(const Setting& s, const CaseTensor& from, int64_t channels, const Operand& to) {
  with_dtype(s.rounding.dtype, [&](auto dtype) {
    for_each_row(s.on_gpu, s.sequences * s.heads * s.keys, channels, GatherStep<dtype()>{s, true, from, channels, to});
  });
}

void softmax_rows(const BlockRows& b, const OfScores& x) {
  with_dtype(b.s.rounding.dtype, [&](auto dtype) {
    for_each_row(b.s.on_gpu, b.s.sequences * b.s.heads * b.rows, threads_for(b.keys), SoftmaxStep<dtype()>{b, x});
  });
}

void output_rows(const BlockRows& b, const OfOutput& x) {
  with_dtype(b.s.rounding.dtype, [&](auto dtype) {
    for_each_row(b.s.on_gpu, b.s.sequences * b.s.heads * b.rows, threads_for(b.s.dv), OutputStep<dtype()>{b, x});
  });
}

void gradient_rows(const BlockRows& b, const OfGradient& x) {
  with_dtype(b.s.rounding.dtype, [&](auto dtype) {
    for_each_row(b.s.on_gpu, b.s.sequences * b.s.heads * b.rows, threads_for(b.keys), GradientStep<dtype()>{b, x});
  });
}

void query_gradient_rows(const BlockRows& b, const float* product, const CaseTensor& dq) {
  with_dtype(b.s.rounding.dtype, [&](auto dtype) {
    for_each_row(b.s.on_gpu, b.s.sequences * b.s.heads * b.rows, b.s.d, QueryGradientStep<dtype()>{b, product, dq});
  });
}

void key_gradient_rows(const Setting& s, const float* by_head, int64_t channels, bool scaled, const CaseTensor& gradient) {
  with_dtype(s.rounding.dtype, [&](auto dtype) {
    for_each_row(s.on_gpu, s.sequences * s.heads / s.group * s.keys, channels,
                 KeyGradientStep<dtype()>{s, by_head, channels, scaled, gradient});
  });
}

}  // namespace attnbench::emulation
