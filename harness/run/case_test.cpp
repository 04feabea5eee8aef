#include "harness/run/case.hpp"

#include <gtest/gtest.h>

#include <random>

#include "harness/run/case_keys.hpp"
#include "harness/run/names.hpp"

namespace attnbench {
namespace {

std::string canonical(std::string_view line) {
  return format_case(parse_case(line));
}

std::string message(std::string_view line) {
  try {
    parse_case(line, "cases/x.suite:12");
  } catch (const CaseError& error) {
    return error.what();
  }
  return "accepted";
}

void expect_message(std::string_view line, std::initializer_list<std::string_view> parts) {
  const std::string got = message(line);
  for (std::string_view part : parts)
    EXPECT_NE(got.find(part), std::string::npos) << line << "\n  " << got << "\n  lacks " << part;
}

TEST(Case, DefaultsFollowFromWhatIsGiven) {
  const Case c = parse_case("attention d=64 hq=6 lq=17");
  EXPECT_EQ(c.problem.b, 1);
  EXPECT_EQ(c.problem.hkv, 6);
  EXPECT_EQ(c.problem.dv, 64);
  EXPECT_EQ(c.problem.lk, 17);
  EXPECT_EQ(c.problem.dtype, Dtype::bf16);
  EXPECT_EQ(c.problem.layout, Layout::packed);
  EXPECT_EQ(c.seed, 0u);
  EXPECT_TRUE(c.metadata.timed);
}

TEST(Case, TheCanonicalFormIsOrderedAndLeavesDefaultsOut) {
  EXPECT_EQ(
      canonical("attention b=2 hq=16 hkv=4 lq=1024 lk=1024 d=128 dtype=bf16 mask=causal align=bottom_right layout=packed seed=7"),
      "attention b=2 hq=16 hkv=4 d=128 lq=1024 mask=causal seed=7");
  EXPECT_EQ(canonical("  attention\tlq=4 d=8\r"), "attention d=8 lq=4");
  EXPECT_EQ(canonical("attention lens=17+64+0+129 klens=17+64+0+129 d=8"), "attention d=8 lens=17+64+0+129");
  EXPECT_EQ(canonical("attention d=8 lens=uniform(1,9) klens=uniform(1,9)"),
            "attention d=8 lens=uniform(1,9) klens=uniform(1,9)");
  EXPECT_EQ(canonical("attention d=8 lq=0 scale=auto softcap=off dropout=off window=none"), "attention d=8 lq=0");
}

TEST(Case, EveryKeyParsesAndPrints) {
  const std::string all =
      "attention b=3 hq=6 hkv=2 d=64 dv=32 lens=uniform(2,9) klens=uniform(1,5) dtype=fp16 mask=causal align=top_left "
      "window=-1:3 "
      "layout=padded pad=holes scale=0.25 softcap=30.5 alibi=on sink=on dropout=0.1:7 fill=ramp dout=one_hot strides=unaligned "
      "seed=18446744073709551615";
  EXPECT_EQ(canonical(all), all);
  const Case c = parse_case(all);
  EXPECT_EQ(c.problem.window, (SlidingWindow{-1, 3}));
  EXPECT_EQ(c.problem.dropout, (Dropout{0.1, 7}));
  EXPECT_EQ(c.problem.scale, 0.25);
  EXPECT_EQ(c.seed, 18446744073709551615u);
  EXPECT_EQ(canonical("attention lk=9 lq=5 d=2"), "attention d=2 lq=5 lk=9");
}

TEST(Case, EveryNameOfEveryEnumParses) {
  const auto check = [](std::string_view key, const std::vector<std::string_view>& names, std::string_view more) {
    for (std::string_view name : names) {
      const std::string pair = std::string(key) + "=" + std::string(name);
      const Key& found = find_key(case_keys(), Token{std::string(key), "", ""});
      EXPECT_EQ(found.format(parse_case("attention d=8 lq=4 " + std::string(more) + " " + pair)), name);
    }
  };
  check("dtype", all_names<Dtype>(), "");
  check("mask", all_names<Mask>(), "");
  check("align", all_names<Align>(), "mask=causal");
  check("layout", all_names<Layout>(), "");
  check("pad", all_names<Pad>(), "layout=padded");
  check("fill", all_names<Fill>(), "");
  check("dout", all_names<Dout>(), "");
  check("strides", all_names<Strides>(), "hq=2");
}

TEST(Case, MetadataIsNoPartOfTheIdentity) {
  const Case c = parse_case(
      R"(attention d=8 lq=4 # name=tail expect=must_throw source=https://x.org/i#3 why="a \"b\" \\ c" device=cuda timed=no)");
  EXPECT_EQ(c.metadata, (Metadata{"tail", Expect::must_throw, "https://x.org/i#3", "a \"b\" \\ c", DeviceKind::cuda, false}));
  EXPECT_EQ(format_case(c), "attention d=8 lq=4");
  EXPECT_EQ(c, parse_case("attention d=8 lq=4"));
  EXPECT_EQ(parse_case(format_line(c)).metadata, c.metadata);
  EXPECT_EQ(format_line(parse_case("attention d=8 lq=4 #")), "attention d=8 lq=4");
  EXPECT_EQ(c.metadata.repeats, 0);
  EXPECT_EQ(parse_case("attention d=8 lq=4 # repeats=1000").metadata.repeats, 1000);
  EXPECT_EQ(format_line(parse_case("attention d=8 lq=4 # repeats=1000")), "attention d=8 lq=4 # repeats=1000");
  EXPECT_THROW(parse_case("attention d=8 lq=4 # repeats=-1"), CaseError);
  EXPECT_THROW(parse_case("attention d=8 lq=4 # repeats=1000001"), CaseError);
}

TEST(Case, AnErrorNamesThePlaceAndTheNearestRightThing) {
  expect_message("attention hd=64 lq=4", {"cases/x.suite:12, column 11: unknown key 'hd'", "did you mean 'd'?"});
  expect_message("atention d=64 lq=4",
                 {"column 1: unknown operation 'atention' (known: attention, llama, training)", "did you mean 'attention'?"});
  expect_message("attention d=64 lq=4 d=32", {"column 21: key 'd' is repeated", "column 11"});
  expect_message("attention d=64 lq=4 dtype=fp61",
                 {"column 21: dtype=fp61: expected bf16 | fp16 | fp32", "did you mean 'fp16'?"});
  expect_message("attention d=64 lq=4 mask=casual", {"did you mean 'causal'?"});
  expect_message("attention d=64 lq=4 alibi=yes", {"on | off"});
  expect_message("attention d=64 lq=4 # nam=x", {"column 23: unknown key 'nam'", "did you mean 'name'?"});
  expect_message("attention d=64 lq=4 # d=3", {"unknown key 'd'", "why"});
}

TEST(Case, AKeyAsLongAsAFileIsRefusedBeforeItsValuesAreRead) {
  // Each of the values would hold the key: 80 GB.
  std::string ones;
  for (int i = 0; i < 200'000; ++i) ones += "1,";
  expect_message("attention " + ones + "=" + ones + "1 d=8 lq=1", {"column 11: got '1,1,", "expected key=value"});
}

TEST(Case, ValuesOutOfRangeAreRefused) {
  expect_message("attention d=0 lq=4", {"column 11: d=0: expected a whole number from 1 to 4096"});
  expect_message("attention d=64 hq=6 hkv=4 lq=4", {"column 21: hkv=4: expected a divisor of hq=6"});
  expect_message("attention d=64 hkv=2 lq=4", {"hkv=2: expected a divisor of hq=1"});
  expect_message("attention d=64 hq=0 lq=4", {"hq=0"});
  expect_message("attention d=64 lq=1000000000000", {"lq=1000000000000: expected a whole number from 0 to 2147483647"});
  expect_message("attention d=64 lq=99999999999999999999999999", {"lq=99999999999999999999999999"});
  expect_message("attention d=64 lq=-1", {"lq=-1"});
  expect_message("attention d=64 lq=4.5", {"lq=4.5"});
  expect_message("attention d=64 b=0 lq=4", {"b=0"});
  expect_message("attention d=64 lq=4 softcap=-1", {"softcap=-1: expected off, or a number above 0"});
  expect_message("attention d=64 lq=4 scale=nan", {"scale=nan"});
  expect_message("attention d=64 lq=4 scale=1e999", {"scale=1e999"});
  expect_message("attention d=64 lq=4 dropout=1:3", {"dropout=1:3: expected off, or p:seed with 0 < p < 1"});
  expect_message("attention d=64 lq=4 dropout=0.5", {"p:seed"});
  expect_message("attention d=64 lq=4 window=3", {"left:right"});
  expect_message("attention d=64 lq=4 window=-1:-1", {"not both"});
  expect_message("attention d=64 lq=4 seed=-1", {"seed=-1: expected a seed from 0 to 18446744073709551615"});
}

TEST(Case, NoSumOfLengthsOverflows) {
  expect_message("attention d=64 b=3 lq=1000000000", {"lq=1000000000: expected at most 2147483647 tokens", "got 3000000000"});
  expect_message("attention d=64 b=3 lq=1 lk=1000000000", {"lk=1000000000: expected at most"});
  expect_message("attention d=64 lens=2000000000+2000000000", {"got 4000000000"});
  expect_message("attention d=64 lens=1+1 klens=2000000000+2000000000", {"klens="});
  expect_message("attention d=64 b=1048576 lens=uniform(0,2147483647)", {"got 2251799812636672"});
  expect_message("attention d=64 lens=2000000000+1 layout=padded", {"got 4000000000"});
  expect_message("attention d=64 lq=2147483647 layout=padded pad=holes", {"got 2684354558"});
  EXPECT_EQ(message("attention d=64 lq=2147483647"), "accepted");
}

TEST(Case, LengthsAreGivenInOneWay) {
  expect_message("attention d=64", {"column 1: lq= (equal lengths) or lens= (a length each) is missing"});
  expect_message("attention lq=4", {"column 1: d= is missing"});
  expect_message("attention d=64 lk=4", {"lq= (equal lengths) or lens="});
  expect_message("attention d=64 lq=4 lens=4+5", {"lq=4: expected no lq= here"});
  expect_message("attention d=64 lk=4 lens=4+5", {"lk=4: expected no lk= here"});
  expect_message("attention d=64 lq=4 klens=4", {"klens=4: expected no klens= here"});
  expect_message("attention d=64 b=2 lens=4+5", {"b=2: expected no b= here"});
  expect_message("attention d=64 lens=4+5 klens=4+5+6", {"klens=4+5+6: expected 2 lengths"});
  expect_message("attention d=64 lens=4++5", {"got ''"});
  expect_message("attention d=64 lens=4+x", {"got 'x'"});
  expect_message("attention d=64 lens=uniform(9,4)", {"low <= high"});
  expect_message("attention d=64 lens=uniform(9", {"uniform(low,high)"});
  expect_message("attention d=64 lens=unifrom(1,2)", {"did you mean 'uniform'?"});
  EXPECT_EQ(canonical("attention d=64 b=5 lens=uniform(4,9)"), "attention b=5 d=64 lens=uniform(4,9)");
  EXPECT_EQ(canonical("attention d=64 lens=uniform(4,9) klens=1+2"), "attention d=64 lens=uniform(4,9) klens=1+2");
  EXPECT_EQ(parse_case("attention d=64 lens=uniform(4,9) klens=1+2").problem.b, 2);
}

TEST(Case, AKeyWithoutEffectIsRefused) {
  expect_message("attention d=64 lq=4 pad=left", {"pad=left: expected layout=padded beside it"});
  expect_message("attention d=64 lq=4 align=top_left", {"align=top_left: expected mask=causal, a window or alibi"});
}

TEST(Case, MalformedLinesAreRefused) {
  expect_message("", {"column 1: unknown operation ''"});
  expect_message("attention d", {"column 11: got 'd', expected key=value"});
  expect_message("attention =3", {"got '=3', expected key=value"});
  expect_message("attention d= lq=3", {"'d=' has no value"});
  expect_message("attention d=64,128 lq=3", {"column 11: d=64,128: expected one value: a comma sweeps"});
  expect_message("attention d=64 lq=3 # why=\"open", {"the quote after 'why=' does not end"});
  expect_message("attention d=64 lq=3 # free text", {"got 'free', expected key=value"});
  expect_message(std::string_view("attention d=64\0lq=3", 19), {"column 15: byte 0x00 is not text"});
  expect_message("attention d=64 lq=3 # name=\xff", {"byte 0xff is not text"});
  expect_message("attention d=64 lq=3\nattention", {"byte 0x0a is not text"});
  EXPECT_EQ(parse_case("attention d=64 lq=3 # why=\"größer → ok\"").metadata.why, "größer → ok");
  std::string many = "attention";
  for (int i = 0; i < 1000; ++i) many += " k" + std::to_string(i) + "=1";
  expect_message(many, {"more than 64 keys"});
}

class RandomCase {
 public:
  explicit RandomCase(uint64_t seed) : random_(seed) {}

  Case next() {
    Case c;
    Problem& p = c.problem;
    p.hkv = below(4) + 1, p.hq = p.hkv * (below(4) + 1), p.d = below(256) + 1, p.dv = chance() ? p.d : below(256) + 1;
    set_lengths(p);
    p.dtype = any<Dtype>(), p.mask = any<Mask>(), p.layout = any<Layout>();
    if (chance()) p.window = SlidingWindow{below(9) - 1, below(9)};
    if (chance()) p.alibi = true;
    if (p.uses_alignment()) p.align = any<Align>();
    if (p.layout == Layout::padded) p.pad = any<Pad>();
    if (chance()) p.scale = std::ldexp(static_cast<double>(random_()) - 1e19, -static_cast<int>(below(130)));
    if (chance()) p.softcap = std::ldexp(static_cast<double>(random_() | 1), -60);
    if (chance()) p.dropout = {std::ldexp(static_cast<double>((random_() >> 12) | 1), -52), random_()};
    p.sink = chance();
    c.fill = any<Fill>(), c.dout = any<Dout>(), c.strides = any<Strides>(), c.seed = chance() ? 0 : random_();
    if (c.strides == Strides::far && p.hkv == 1) c.strides = Strides::contiguous;
    if (p.layout == Layout::packed && chance()) p.tail = below(99);
    c.metadata = {chance() ? "" : "n\"a me\\",
                  any<Expect>(),
                  chance() ? "" : "http://x/#1",
                  chance() ? "" : "why not",
                  any<DeviceKind>(),
                  chance(),
                  chance(),
                  below(3)};
    return c;
  }

  int64_t below(int64_t n) { return static_cast<int64_t>(random_() % n); }

 private:
  bool chance() { return below(2) == 0; }
  template <class E>
  E any() {
    return kNames<E>[below(kNames<E>.size())].value;
  }
  LengthSpec drawn() {
    const int64_t low = below(100);
    return UniformLengths{low, low + below(100)};
  }
  LengthSpec list(int64_t n) {
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < n; ++i) lengths.push_back(below(300));
    return lengths;
  }
  void set_lengths(Problem& p) {
    p.b = below(5) + 1;
    switch (below(4)) {
      case 0:
        p.lq = below(300), p.lk = chance() ? p.lq : below(300);
        break;
      case 1:
        p.lens = list(p.b);
        break;
      case 2:
        p.lens = drawn();
        break;
      default:
        p.lens = list(p.b), p.klens = chance() ? list(p.b) : drawn();
    }
    if (p.klens == p.lens) p.klens = std::monostate{};
  }

  std::mt19937_64 random_;
};

TEST(Case, RandomCasesComeBackFromTheirLine) {
  RandomCase random(1);
  for (int i = 0; i < 20000; ++i) {
    const Case c = random.next();
    const std::string line = format_line(c);
    const Case back = parse_case(line);
    ASSERT_EQ(back, c) << line;
    ASSERT_EQ(back.metadata, c.metadata) << line;
    ASSERT_EQ(format_line(back), line);
  }
}

TEST(Case, NoMutationOfALineCrashesTheParser) {
  RandomCase random(2);
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string line = format_line(random.next());
    for (int64_t change = random.below(8); change >= 0; --change) {
      const size_t at = random.below(line.size());
      switch (random.below(4)) {
        case 0:
          line[at] = static_cast<char>(random.below(256));
          break;
        case 1:
          line.erase(at, random.below(9));
          break;
        case 2:
          line.insert(at, line.substr(random.below(line.size()), random.below(20)));
          break;
        default:
          line.insert(at, 1, "=,+:()#\"\\ 0-9e"[random.below(14)]);
      }
      if (line.empty()) line = "a";
    }
    try {
      const Case c = parse_case(line);
      ASSERT_EQ(parse_case(format_line(c)), c) << line;
    } catch (const CaseError& error) {
      ++refused;
      for (unsigned char byte : std::string(error.what())) ASSERT_GE(byte, 0x20) << line;
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_LT(refused, 20000);
}

}  // namespace
}  // namespace attnbench
